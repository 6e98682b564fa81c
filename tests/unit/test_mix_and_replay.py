"""Mixes of workloads, and saved schedules asked again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from muai_lab.errors import RunError, SettingsError
from muai_lab.settings.dump import dump_config_yaml
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.origin import Origin
from muai_lab.settings.resolve import flatten, load_settings
from muai_lab.workload.schedule import Schedule
from tests.unit.drawing import draw, written

POISSON = {"kind": "poisson", "rate": 5.0}
SHORT = {"weight": 3.0, "workload": {"kind": "synthetic", "prompt_tokens": {"distribution": "fixed", "value": 4}}}
TALK = {"weight": 1.0, "workload": {"kind": "multi_turn", "system_tokens": 3}}


def mix(**parts: Any) -> dict[str, Any]:
    return {"kind": "mix", "parts": parts}


class TestMix:
    def test_arrivals_are_divided_by_the_weights_and_named(self) -> None:
        schedule = draw(mix(short=SHORT, talk=TALK), arrival=POISSON, load={"warmup_s": 0.0, "duration_s": 400.0})

        arrivals = Counter(schedule.request(row).part for row in schedule.starts)
        share = arrivals["short"] / arrivals.total()
        assert set(arrivals) == {"short", "talk"}
        assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / arrivals.total()) ** 0.5)
        assert {request.part for request in schedule if request.turn is not None} == {"talk"}

    def test_sessions_and_prefix_groups_of_parts_are_kept_apart(self) -> None:
        schedule = draw(mix(a=TALK, b=TALK), arrival=POISSON)

        by_session: dict[int | None, set[str | None]] = {}
        by_group: dict[int | None, set[str | None]] = {}
        for request in schedule:
            by_session.setdefault(request.session, set()).add(request.part)
            by_group.setdefault(request.prefix_group, set()).add(request.part)
        assert all(len(parts) == 1 for parts in by_session.values())
        assert by_group == {0: {"a"}, 1: {"b"}}

    def test_a_part_asks_the_same_whatever_else_is_in_the_mix(self) -> None:
        alone = [request.prompt for request in draw(mix(short=SHORT), arrival=POISSON)]
        mixed = [r.prompt for r in draw(mix(short=SHORT, talk=TALK), arrival=POISSON) if r.part == "short"]

        assert mixed == alone[: len(mixed)]

    def test_what_a_part_has_to_tell_is_told_with_its_name(self, tmp_path: Path) -> None:
        text = {"workload": {"kind": "text", "path": written(tmp_path / "p.txt", "why")}}

        assert draw(mix(asked=text)).notes == ("asked: p.txt holds 1 prompt, and 5 were asked for: they repeat",)

    def test_a_weight_can_be_changed_alone(self) -> None:
        choice = flatten({"workload": {**mix(short=SHORT, talk=TALK)}}, Origin("group", "workload=mix"))

        resolved = load_settings(environ={}, overrides={"workload.parts.talk.weight": 9.0}, choices=[choice])

        workload: Any = resolved.settings.workload
        assert (workload.parts["short"].weight, workload.parts["talk"].weight) == (3.0, 9.0)
        assert workload.parts["short"].workload.prompt_tokens.value == 4
        assert str(resolved.origin("workload.parts.talk.weight")) == "override"

    @pytest.mark.parametrize(
        ("parts", "problem"),
        [
            ({}, "a mix needs parts with a weight above 0"),
            ({"a": {"weight": 0.0}}, "a mix needs parts with a weight above 0"),
            ({"a": {"weight": -1.0}}, r"workload\.parts\.a\.weight = -1\.0 .*greater than or equal to 0"),
            ({"a": {"workload": {"kind": "synthetic", "turns": 3}}}, r"workload\.parts\.a\.workload\.turns = 3 .*not"),
            ({"a": {"workload": {"kind": "synthetic", "api": "chat"}}}, "api is set for the whole mix"),
            ({"a": {"workload": {"kind": "azure"}}}, "kind azure needs a file"),
        ],
    )
    def test_parts_that_make_no_sense_are_named(self, parts: dict[str, Any], problem: str) -> None:
        with pytest.raises(SettingsError, match=problem):
            load_settings(environ={}, overrides={"workload.kind": "mix", "workload.parts": parts})


class TestReplay:
    @pytest.fixture
    def drawn(self) -> Schedule:
        return draw(mix(short=SHORT, talk=TALK), arrival=POISSON, load={"warmup_s": 0.0, "duration_s": 20.0})

    @pytest.fixture
    def saved(self, drawn: Schedule, tmp_path: Path) -> dict[str, Any]:
        drawn.write(tmp_path / "schedule.parquet")
        return {"kind": "schedule", "path": str(tmp_path / "schedule.parquet")}

    def test_a_saved_schedule_is_asked_again_as_it_was(self, drawn: Schedule, saved: dict[str, Any]) -> None:
        again = draw(saved, arrival={"kind": "trace"}, seed=5)

        columns = [name for name in drawn.table.column_names if name != "intended_s"]
        assert again.table.select(columns).equals(drawn.table.select(columns))
        shift = drawn.request(0).intended_s
        assert again.table["intended_s"].drop_null().to_numpy() == pytest.approx(
            drawn.table["intended_s"].drop_null().to_numpy() - shift
        )

    def test_it_can_get_other_arrivals_and_ends_when_it_is_used_up(
        self, drawn: Schedule, saved: dict[str, Any]
    ) -> None:
        closed = draw(saved, load={"requests": 3})
        faster = draw(saved, arrival={"kind": "constant", "rate": 100.0})

        assert not closed.open_loop
        assert len(closed) == 3
        assert [request.prompt for request in faster] == [request.prompt for request in drawn]
        assert faster.notes[0].startswith("recorded times are not used")
        assert faster.notes[1].startswith(f"the schedule has only {len(drawn.starts)} arrivals: none come after")

    def test_the_notes_of_the_drawing_come_along(self, tmp_path: Path) -> None:
        text = {"kind": "text", "path": written(tmp_path / "p.txt", "why")}
        draw(text, load={"requests": 2}).write(tmp_path / "s.parquet")
        again = draw({"kind": "schedule", "path": str(tmp_path / "s.parquet")}, load={"requests": 2})

        assert again.notes == ("when s.parquet was drawn: p.txt holds 1 prompt, and 2 were asked for: they repeat",)

    def test_a_schedule_of_a_closed_loop_has_no_times_to_replay(self, tmp_path: Path) -> None:
        draw(mix(short=SHORT)).write(tmp_path / "closed.parquet")

        with pytest.raises(RunError, match="this one has none"):
            draw({"kind": "schedule", "path": str(tmp_path / "closed.parquet")}, arrival={"kind": "trace"})

    def test_turns_apart_from_their_session_are_refused(self, drawn: Schedule, tmp_path: Path) -> None:
        sessions = [request.session for request in drawn]
        torn = [None if request.turn == 1 else session for request, session in zip(drawn, sessions, strict=True)]
        place = drawn.table.column_names.index("session")
        table = drawn.table.set_column(place, drawn.table.schema.field("session"), pa.array(torn, pa.int64()))
        Schedule(table).write(tmp_path / "torn.parquet")

        with pytest.raises(RunError, match=r"row \d+ and the turns after it are of different sessions"):
            draw({"kind": "schedule", "path": str(tmp_path / "torn.parquet")}, arrival=POISSON)

    @pytest.mark.parametrize("times", [[3.0, 1.0], [0.0, float("nan")], [0.0, None]], ids=str)
    def test_times_out_of_order_or_missing_are_refused(self, tmp_path: Path, times: list[float | None]) -> None:
        drawn = draw(mix(short=SHORT), load={"requests": 2})
        place = drawn.table.column_names.index("intended_s")
        table = drawn.table.set_column(place, drawn.table.schema.field("intended_s"), pa.array(times, pa.float64()))
        Schedule(table).write(tmp_path / "odd.parquet")

        with pytest.raises(RunError, match="are missing, negative or not in order"):
            draw({"kind": "schedule", "path": str(tmp_path / "odd.parquet")}, arrival={"kind": "trace"})

    @pytest.mark.parametrize(
        ("column", "value", "rule"),
        [
            ("max_tokens", 0, "max_tokens must be at least 1"),
            ("prompt_tokens", -5, "prompt_tokens must be at least 0"),
            ("prompt", None, "one of prompt, prompt_ids and messages"),
            ("think_s", float("nan"), "think_s must be at least 0"),
            ("extra", "[1]", "extra must be a JSON object"),
            ("extra", "{", "extra must be a JSON object"),
        ],
    )
    def test_a_row_made_by_hand_that_cannot_be_asked_is_named(
        self, tmp_path: Path, column: str, value: Any, rule: str
    ) -> None:
        table = draw({"kind": "synthetic"}).table
        values = table[column].to_pylist()
        values[1] = value
        place = table.schema.get_field_index(column)
        path = tmp_path / "schedule.parquet"
        Schedule(
            table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
        ).write(path)

        with pytest.raises(RunError, match=rf"schedule\.parquet: row 1: {rule}"):
            draw({"kind": "schedule", "path": str(path)})

    def test_arrival_trace_needs_a_workload_with_times(self) -> None:
        with pytest.raises(ValueError, match="arrival=trace takes its times from the workload, but synthetic has none"):
            LabSettings.model_validate({"arrival": {"kind": "trace"}})


def test_a_written_mix_says_what_was_set_and_can_be_read_again() -> None:
    parts = {"a": {"weight": 2.0, "workload": {"kind": "text", "path": "p.txt"}}}
    resolved = load_settings(environ={}, overrides={"workload": {"kind": "mix", "parts": parts}})

    written_down = yaml.safe_load(dump_config_yaml(resolved))["workload"]

    assert written_down["parts"] == parts
    again = load_settings(environ={}, overrides={"workload": written_down})
    assert again.settings.workload == resolved.settings.workload
