"""The address of the admin call and the variable of its token, for the server and for its clients."""

from __future__ import annotations

ADMIN_PATH = "/admin/optimization"
TOKEN_VARIABLE = "MUAI_ADMIN_TOKEN"
