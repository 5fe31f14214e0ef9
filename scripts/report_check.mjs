// Opens reports in headless Chromium and checks how they lie on the screen: at widths 360, 768 and 1280, light and dark, and
// in print.
//
//     npm install --no-save playwright-core        (anywhere; or PLAYWRIGHT_DIR=the directory that has node_modules)
//     node scripts/report_check.mjs report.html [more.html] [--screenshots DIR]
//
// Fails where the page scrolls sideways, a text in a chart lies on another or outside its drawing, text outside of the boxes
// that scroll by themselves is cut, a contrast is too low, a scrolling box or link cannot be reached by keyboard, headings leave
// out a level, a table or drawing has no name, or the page asks for anything. CHROMIUM: the browser (default
// /usr/bin/chromium).
import { createRequire } from 'node:module';
import { mkdirSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const require = createRequire(join(resolve(process.env.PLAYWRIGHT_DIR ?? '.'), 'package.json'));
const { chromium } = require('playwright-core');

const args = process.argv.slice(2);
const at = args.indexOf('--screenshots');
const shots = at < 0 ? null : args.splice(at, 2)[1];
if (args.length === 0) {
  console.error('usage: node scripts/report_check.mjs report.html [more.html] [--screenshots DIR]');
  process.exit(2);
}
if (shots) mkdirSync(shots, { recursive: true });

// Runs in the page; returns what is wrong, a line each.
function inspect({ print }) {
  const wrong = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    const wide = [...document.body.querySelectorAll('*')]
      .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > root.clientWidth + 0.5)
      .slice(0, 3)
      .map(e => `${e.tagName}.${e.getAttribute('class')} ${Math.round(e.getBoundingClientRect().right)}`);
    wrong.push(`scrolls sideways: ${root.scrollWidth} in ${root.clientWidth} (${wide.join('; ')})`);
  }
  const visible = e => e.checkVisibility ? e.checkVisibility() : e.getClientRects().length > 0;
  for (const svg of [...document.querySelectorAll('svg[role=img]')].filter(visible)) {
    const id = svg.querySelector('title')?.textContent ?? '?';
    const outer = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map(e => ({ e, box: e.getBoundingClientRect(), text: e.textContent }));
    for (const [i, a] of texts.entries()) {
      const out = a.box.left < outer.left - 1 || a.box.right > outer.right + 1 || a.box.top < outer.top - 1 || a.box.bottom > outer.bottom + 1;
      if (out) wrong.push(`${id}: "${a.text}" lies outside of the drawing`);
      // Half a pixel of rounding; and a box is higher than its letters, by about a fifth above and below.
      const slack = box => Math.max(0.5, 0.18 * box.height);
      for (const b of texts.slice(0, i)) {
        const x = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
        const y = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
        if (x > 0.5 && y > Math.max(slack(a.box), slack(b.box))) wrong.push(`${id}: "${a.text}" lies on "${b.text}"`);
      }
    }
    const size = Math.min(...texts.map(t => parseFloat(getComputedStyle(t.e).fontSize) * outer.width / svg.viewBox.baseVal.width));
    if (!print && size < 9) wrong.push(`${id}: text of ${size.toFixed(1)} px`);
    if (!svg.querySelector('desc')?.textContent) wrong.push(`${id}: no description`);
    // Every line has its tag.
    const tags = svg.querySelectorAll('.tag text').length;
    const lines = svg.querySelectorAll('polyline.line:not(.thin)').length;
    if (lines > 0 && tags === 0) wrong.push(`${id}: lines without tags`);
  }
  // Boxes of text that hide a part of it.
  for (const e of document.querySelectorAll('p,li,h1,h2,h3,h4,summary,td,th,pre,caption')) {
    if (!visible(e) || e.closest('svg') || (e.closest('.scroll') && !print)) continue;
    if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && getComputedStyle(e).display !== 'inline') {
      wrong.push(`${e.tagName} is cut: "${e.textContent.slice(0, 40)}"`);
    }
  }
  // Contrast of text against what is behind it.
  const colour = text => {
    const n = text.match(/[\d.]+/g).map(Number);
    return n.length > 3 && n[3] === 0 ? null : n;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c) return c;
    }
    return [255, 255, 255];
  };
  const light = c => {
    const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = new Set();
  for (const e of document.querySelectorAll('p,li,h1,h2,h3,h4,summary,td,th,a,pre,caption,b,svg[role=img] text')) {
    if (!visible(e)) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(colour(e.closest('svg') ? style.fill : style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.add(`contrast ${ratio.toFixed(2)} of ${e.tagName}.${e.getAttribute('class')}`);
  }
  wrong.push(...low);
  // By keyboard and screen reader.
  let level = 0;
  for (const h of document.querySelectorAll('h1,h2,h3,h4,h5')) {
    const own = Number(h.tagName[1]);
    if (own > level + 1) wrong.push(`heading "${h.textContent.slice(0, 40)}" of level ${own} after ${level}`);
    level = own;
  }
  for (const e of document.querySelectorAll('.scroll')) {
    if (e.tabIndex !== 0 || !e.getAttribute('aria-label')) wrong.push('a scrolling box without name or focus');
  }
  for (const th of document.querySelectorAll('th:not([scope])')) wrong.push(`th without scope: ${th.textContent}`);
  for (const svg of document.querySelectorAll('svg:not([role=img]):not([aria-hidden=true])')) wrong.push(`a drawing without name: ${svg.outerHTML.slice(0, 60)}`);
  for (const link of document.querySelectorAll('a')) {
    if (!document.getElementById(link.hash.slice(1))) wrong.push(`link to nowhere: ${link.hash}`);
  }
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  if (new Set(ids).size !== ids.length) wrong.push('ids that stand twice');
  if (document.querySelector('script')) wrong.push('a script');
  return wrong;
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
let failures = 0;
const cases = [
  ['360', 360, 'light'], ['768', 768, 'light'], ['1280', 1280, 'light'],
  ['360-dark', 360, 'dark'], ['1280-dark', 1280, 'dark'], ['print', 794, 'print'],
];
for (const file of args) {
  for (const [name, width, mode] of cases) {
    const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme: mode === 'dark' ? 'dark' : 'light' });
    const asked = [];
    page.on('request', r => { if (!r.url().startsWith('file:')) asked.push(`asks for ${r.url()}`); });
    const said = [];
    page.on('console', m => { if (m.type() === 'error') said.push(`console: ${m.text()}`); });
    if (mode === 'print') await page.emulateMedia({ media: 'print' });
    await page.goto(pathToFileURL(resolve(file)).href);
    // What is folded away must lie well too.
    if (mode !== 'print') await page.evaluate(() => document.querySelectorAll('details').forEach(d => { d.open = true; }));
    const wrong = [...await page.evaluate(inspect, { print: mode === 'print' }), ...asked, ...said];
    if (mode !== 'print') {
      // The first tab stop is the link past the sections, and it shows.
      await page.keyboard.press('Tab');
      const first = await page.evaluate(() => {
        const e = document.activeElement;
        return { skip: e.className === 'skip', left: e.getBoundingClientRect().left, outline: getComputedStyle(e).outlineStyle };
      });
      if (!first.skip || first.left < 0 || first.outline === 'none') wrong.push('the first tab stop is no visible skip link');
    }
    if (shots) {
      const to = join(shots, `${basename(file, '.html')}-${name}`);
      if (mode === 'print') await page.pdf({ path: `${to}.pdf`, format: 'A4' });
      else await page.screenshot({ path: `${to}.png`, fullPage: true });
    }
    console.log(`${file} ${name}: ${wrong.length === 0 ? 'well' : `${wrong.length} wrong`}`);
    wrong.slice(0, 30).forEach(line => console.log(`  ${line}`));
    failures += wrong.length;
    await page.close();
  }
}
await browser.close();
process.exit(failures === 0 ? 0 : 1);
