"use strict";
// The report's page: draws the figures, and says which point wins at another link rate or for another accuracy.
// The arithmetic is that of search/verdict.py; tests/test_search_report.py compares the two.

const SLOWEST = 1e-3, FASTEST = 1e3; // MB/s, the ends of the slider, unless the study's own rate lies outside
const STEPS = 600; // in which the slider's range is looked through for changes
const COLOURS = ["#2563eb", "#b45309", "#047857", "#7c3aed", "#0891b2", "#be185d", "#4b5563"];
const RING = { symbol: "circle-open", size: 27, color: "#111827", line: { width: 3 } };
const OPTIONS = { displaylogo: false, responsive: true, showSendToCloud: false }; // nothing leaves the page
const TICKS = Array.from({ length: 27 }, (_, n) => [1, 2, 5][n % 3] * 10 ** (Math.floor(n / 3) - 3)); // ms, written in full
const WINS = "wins at the slider's rate";
const ROUNDING = 1e-9;  // 25 of 2,500 images are a point, whatever their quotients' last digits say

function latencyAt(point, rate) {
  return point.fixed_ms + point.payload_bytes / (1000 * rate);
}

// The fastest of those that give away no more than so much of the highest accuracy; null if nothing keeps the limits.
function winnerAt(table, rate, givenAway) {
  const limit = table.max_latency_ms ?? Infinity;
  const usable = table.points.filter((point) => latencyAt(point, rate) <= limit);
  if (!usable.length) return null;
  const highest = Math.max(...usable.map((point) => point.accuracy));
  const asGood = usable.filter((point) => point.accuracy >= highest - givenAway - ROUNDING);
  return asGood.reduce((best, point) => (isBetter(point, best, rate) ? point : best));
}

function isBetter(one, other, rate) {
  const difference = latencyAt(one, rate) - latencyAt(other, rate);
  return difference < 0 || (difference === 0 && one.accuracy > other.accuracy);
}

// Which point wins at which rates, from slow links to fast ones: [{point, low, high}], rates in MB/s.
function spansOf(table, givenAway) {
  const spans = [];
  for (const rate of ratesOf(table)) {
    const point = winnerAt(table, rate, givenAway), last = spans.at(-1);
    if (last?.point === point) {
      last.seen = rate;
      continue;
    }
    const edge = last ? edgeBetween(table, givenAway, last, rate) : 0;
    if (last) last.high = edge;
    spans.push({ point, low: edge, high: Infinity, seen: rate });
  }
  return spans;
}

// The rate at which a span ends, which lies between the last one seen in it and another.
function edgeBetween(table, givenAway, span, beyond) {
  let [inside, outside] = [span.seen, beyond];
  for (let halving = 0; halving < 50; halving++) {
    const middle = Math.sqrt(inside * outside);
    if (winnerAt(table, middle, givenAway) === span.point) inside = middle;
    else outside = middle;
  }
  return inside;
}

function ratesOf(table) {
  const [low, high] = endsOf(table).map(Math.log10);
  return Array.from({ length: STEPS + 1 }, (_, step) => 10 ** (low + (step * (high - low)) / STEPS));
}

function endsOf(table) {
  return [Math.min(SLOWEST, table.rate_mb_per_s / 10), Math.max(FASTEST, table.rate_mb_per_s * 10)];
}

// ---- words and pictures

const byId = (id) => document.getElementById(id);
const read = (id) => JSON.parse(byId(id).textContent);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function element(name, text, attributes = {}) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(text);
  return made;
}

function megabytes(rate) {
  const digits = (value) => value.toLocaleString("en", { maximumSignificantDigits: 2 });
  return rate >= 0.1 ? `${digits(rate)} MB/s` : `${digits(1000 * rate)} kB/s`;
}

function between({ low, high }) {
  if (low === 0 && high === Infinity) return "at any rate";
  if (low === 0) return `below ${megabytes(high)}`;
  return high === Infinity ? `above ${megabytes(low)}` : `${megabytes(low)} to ${megabytes(high)}`;
}

function showWinner(table, winner, rate) {
  byId("winner").replaceChildren(...(winner ? wordsOf(table, winner, rate) : ["Nothing keeps the limits at this rate."]));
}

function wordsOf(table, point, rate) {
  const busy = point.payload_bytes / (1000 * rate), latency = latencyAt(point, rate);
  const slowest = Math.max(point.device_ms, busy, point.server_ms);
  const sent = point.payload_bytes ? `, ${Math.round(point.payload_bytes).toLocaleString("en")} bytes` : "";
  const drop = `${point.drop_pp < 0 ? "" : "+"}${point.drop_pp.toFixed(1)} pp`;
  const figures = `${percent(point.accuracy)} (drop ${drop})${sent}, `
    + `${latency.toFixed(2)} ms; nine of ten within ${(point.fixed_p90_ms + busy).toFixed(2)} ms; `
    + `${(1000 / slowest).toFixed(1)} frames/s`;
  const given = rate !== table.rate_mb_per_s; // a rate that somebody gave is no measurement
  const parts = Object.entries(point.parts).map(([name, [ms, source]]) =>
    (name === "link" ? [name, ms + busy, given ? "modelled" : source] : [name, ms, source]));
  const bar = element("div", "", { className: "bar" });
  const list = element("p", "", { className: "note" });
  for (const [name, ms, source] of parts) {
    const words = `${name} ${ms.toFixed(3)} ms (${source})`, colour = table.colours[name];
    const piece = element("span", "", { title: words });
    Object.assign(piece.style, { width: `${(100 * ms) / latency}%`, background: colour });
    bar.append(piece);
    list.append(element("span", dot(colour), { className: "part" }));
    list.lastChild.append(words);
  }
  return [element("p", element("b", point.title)), element("p", figures), bar, list];
}

function dot(colour) {
  const made = element("i", "", { className: "dot" });
  made.style.background = colour;
  return made;
}

function showSpans(spans, winner) {
  const winners = winnersOf(spans);
  const row = ({ point, low, high }) => {
    const made = element("tr", "", { className: point === winner ? "now" : "" });
    const said = point ? [point.title, percent(point.accuracy)] : ["nothing keeps the limits", ""];
    made.append(...[between({ low, high }), ...said].map((text) => element("td", text)));
    if (point) made.cells[1].prepend(dot(colourOf(point, winners)));
    return made;
  };
  byId("spans").replaceChildren(...spans.map(row));
}

function winnersOf(spans) {
  return [...new Set(spans.map((span) => span.point))].filter(Boolean);
}

function colourOf(point, winners) {
  return COLOURS[winners.indexOf(point) % COLOURS.length];
}

// Latency over the link's rate: a line for each point that wins somewhere, thick where it does.
function drawRates(table, spans, winner, rate) {
  const rates = ratesOf(table), winners = winnersOf(spans);
  const line = (point, along, style) => ({
    x: along, y: along.map((each) => latencyAt(point, each)), mode: "lines",
    line: { ...style, color: colourOf(point, winners) },
    hovertemplate: `${point.title}<br>%{x:.3g} MB/s: %{y:.2f} ms<extra></extra>`,
  });
  const thin = winners.map((point) => line(point, rates, { width: 1, dash: "dot" }));
  const thick = spans.filter((span) => span.point).map(({ point, low, high }) => {
    const inside = rates.filter((each) => each > low && each < high);
    return line(point, [low || rates[0], ...inside, Math.min(high, rates.at(-1))], { width: 4 });
  });
  const mark = { x: [rate], y: [winner && latencyAt(winner, rate)], mode: "markers", marker: RING, hoverinfo: "skip" };
  Plotly.react("rates", [...thin, ...thick, mark], ratesLayout(table, thick.flatMap((each) => each.y)), OPTIONS);
}

function ratesLayout(table, best) {
  const { template, font } = read("pareto-figure").layout;
  const range = best.length ? [Math.min(...best) / 1.3, Math.max(...best) * 2].map(Math.log10) : undefined;
  return {
    template, font, height: 380, margin: { l: 70, r: 20, t: 20, b: 60 }, showlegend: false, hovermode: "closest",
    xaxis: { type: "log", dtick: 1, title: { text: "link rate (MB/s)" }, range: endsOf(table).map(Math.log10) },
    yaxis: { type: "log", tickvals: TICKS, title: { text: "latency (ms), less is better" }, range },
  };
}

function markInPareto(winner) {
  const plot = byId("pareto"), at = { x: [winner && winner.latency_ms], y: [winner && winner.accuracy] };
  const index = plot.data.findIndex((trace) => trace.name === WINS);
  if (index < 0) Plotly.addTraces(plot, { ...at, name: WINS, mode: "markers", marker: RING, hoverinfo: "skip" });
  else Plotly.restyle(plot, { x: [at.x], y: [at.y] }, [index]);
}

// ---- the page

async function loadPlotly() {
  const packed = Uint8Array.from(atob(byId("plotly").textContent), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(element("script", await new Response(unpacked).text()));
}

function drawFigure(name) {
  const { data, layout } = read(`${name}-figure`);
  Plotly.newPlot(name, data, layout, OPTIONS);
}

function showAll(table, rate, givenAway) {
  const winner = winnerAt(table, rate, givenAway), spans = spansOf(table, givenAway);
  showWinner(table, winner, rate);
  showSpans(spans, winner);
  drawRates(table, spans, winner, rate);
  markInPareto(winner);
}

function startSliders(table) {
  const [rate, number, drop] = ["rate", "rate-number", "drop"].map(byId);
  [rate.min, rate.max] = endsOf(table).map(Math.log10);
  const show = () => {
    byId("drop-words").textContent = `${Number(drop.value).toFixed(1)} pp`;
    if (number.value > 0) showAll(table, Number(number.value), drop.value / 100);
  };
  rate.addEventListener("input", () => { number.value = Number((10 ** rate.value).toPrecision(3)); show(); });
  number.addEventListener("input", () => { rate.value = Math.log10(number.value); show(); });
  drop.addEventListener("input", show);
  byId("reset").addEventListener("click", reset);
  function reset() {
    number.value = table.rate_mb_per_s;
    rate.value = Math.log10(table.rate_mb_per_s);
    drop.value = table.given_away_pp;
    show();
  }
  reset();
}

async function start() {
  await loadPlotly();
  ["pareto", "parts", "growth"].forEach(drawFigure);
  startSliders(read("rate-table"));
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  const words = `The figures cannot be drawn (${error.message}); a browser of 2023 or newer is needed.`;
  document.body.prepend(element("p", words, { className: "verdict" }));
});
