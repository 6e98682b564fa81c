// Looks at what the browser made of a page, and leaves its findings at the end of the body, as JSON.
function luminance([r, g, b]) {
  const linear = [r, g, b].map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
function rgba(text) { const n = text.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; }
function paperOf(element) {
  for (let e = element; e; e = e.parentElement) {
    const colour = rgba(getComputedStyle(e).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
}
function contrast(element) {
  const style = getComputedStyle(element);
  const ink = element instanceof SVGElement ? style.fill : style.color;
  if (!/^rgb/.test(ink)) return null;
  const [a, b] = [luminance(rgba(ink)), luminance(paperOf(element))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}
function look() {
  const all = selector => [...document.querySelectorAll(selector)];
  const faint = [];
  for (const element of all('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const seen = element.getClientRects().length > 0 && !element.closest('desc, title, script, .skip');
    if (own && seen) {
      const ratio = contrast(element);
      if (ratio !== null && ratio < 4.5) faint.push(element.tagName + ' ' + element.textContent.trim().slice(0, 30) + ' ' + ratio.toFixed(2));
    }
  }
  const scrollers = all('*').filter(e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth + 1);
  return {
    resources: performance.getEntriesByType('resource').length,
    wider: document.documentElement.scrollWidth - window.innerWidth,
    headings: all('h1, h2, h3, h4').map(e => Number(e.tagName[1])),
    landmarks: ['header', 'main', 'footer'].map(tag => all(tag).length),
    language: document.documentElement.lang,
    faint,
    unreachable: scrollers.filter(e => e.tabIndex < 0).map(e => e.className),
    regions: all('[role=region]').filter(e => !e.getAttribute('aria-label')).length,
    tabindexes: all('[tabindex]').map(e => e.tabIndex),
    heads: all('th').filter(e => !e.scope).length,
    captions: all('table').filter(e => !e.caption).length,
    pictures: all('svg').filter(e => e.getAttribute('role') !== 'img' || !e.querySelector('title') || !e.querySelector('desc')).length,
    drawn: all('figure svg').map(e => e.getBoundingClientRect().height),
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    skip: document.querySelector('a').getAttribute('href'),
  };
}
addEventListener('load', () => {
  const found = document.createElement('output');
  found.textContent = JSON.stringify(look());
  document.body.append(found);
});
