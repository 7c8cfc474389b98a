// What all charts share: looks, axes whose ticks are round numbers at every zoom, and redrawing in another theme.
let data = null;
const drawn = new Map(); // element -> how it is drawn

const onPage = (colour) => (theme.isDark && data.onDark[colour]) || colour;
const grey = () => onPage(data.grey);

function line(name, { joined = true } = {}) {
  const look = data.looks[name];
  return {
    name: plotText(name),
    mode: joined ? "lines+markers" : "markers",
    line: { color: onPage(look.colour), dash: look.isDense ? "dash" : "solid", width: 2 },
    marker: { color: onPage(look.colour), symbol: look.symbol + (look.isDense ? "-open" : ""), size: 9, line: { width: 1.5 } },
  };
}

function whiskers(points, factor = 1) {
  return {
    type: "data",
    symmetric: false,
    array: points.map(([middle, , high]) => (high - middle) * factor),
    arrayminus: points.map(([middle, low]) => (middle - low) * factor),
    thickness: 1.3,
    width: 4,
  };
}

const between = (ticks, low, high) => ticks.filter((tick) => tick >= low * 0.9999 && tick <= high * 1.0001);

// Ticks of a logarithmic axis from `low` to `high`: the coarsest round numbers of which there are three.
function roundTicks(low, high) {
  const decades = [];
  for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d += 1) decades.push(d);
  let found = [];
  for (const mantissas of [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9], Array.from({ length: 90 }, (_, i) => 1 + i / 10)]) {
    found = between(decades.flatMap((d) => mantissas.map((m) => Number((m * 10 ** d).toPrecision(6)))), low, high);
    if (found.length >= 3) break;
  }
  return found.map((tick) => [tick, tick.toLocaleString("en", { maximumSignificantDigits: 6 })]);
}

function ratioTicks(low, high) {
  const first = Math.floor(Math.log2(low));
  const last = Math.ceil(Math.log2(high));
  if (last - first > 12) return roundTicks(low, high).map(([tick, text]) => [tick, `${text}x`]);
  const found = [];
  for (let s = first; s <= last; s += 1) {
    for (const f of last - first <= 3 ? [1, 1.25, 1.5, 1.75] : [1]) found.push(f * 2 ** s);
  }
  return between(found, low, high).map((tick) => [tick, `${Number(tick.toPrecision(4))}x`]);
}

function lengthTicks(lengths) {
  return (low, high) => {
    const inside = between([...lengths].sort((a, b) => b - a), low, high);
    const gap = Math.log2(high / low) / 8;
    const kept = inside.slice(0, 1);
    for (const length of inside.slice(1)) if (Math.log2(kept.at(-1) / length) >= gap) kept.push(length);
    return kept.map((tick) => [tick, tick.toLocaleString("en")]);
  };
}

function logAxis(title, values, ticks) {
  const known = values.filter((value) => value > 0);
  const low = Math.min(...known);
  const high = Math.max(...known);
  const margin = Math.max(0.06 * Math.log10(high / low), 0.05);
  const range = [Math.log10(low) - margin, Math.log10(high) + margin];
  return { title: { text: title }, type: "log", range, ticks, ...placed(ticks, range) };
}

function placed(ticks, range) {
  const found = ticks(10 ** Math.min(...range), 10 ** Math.max(...range));
  return { tickmode: "array", tickvals: found.map(([tick]) => tick), ticktext: found.map(([, text]) => text) };
}

const PRINTED_WIDTH = 1000;

function layoutOf(element, { axes, height, shapes = [], ...rest }) {
  const width = theme.isPrinting ? PRINTED_WIDTH : element.clientWidth;
  const wide = width >= 800;
  const shared = { gridcolor: theme.colour("line"), linecolor: theme.colour("soft"), zeroline: false, automargin: true };
  const layout = {
    width,
    height,
    shapes,
    margin: { l: 70, r: 16, t: 16, b: 60 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: theme.isPrinting ? 11 : 13, color: theme.colour("text") },
    hoverlabel: { bgcolor: theme.colour("panel"), bordercolor: theme.colour("line"), font: { color: theme.colour("text") }, align: "left" },
    legend: wide ? { x: 1.01, y: 1, itemsizing: "constant", traceorder: "normal" } : { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom", itemsizing: "constant", traceorder: "normal" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.colour("soft"), activecolor: theme.colour("accent") },
    ...rest,
  };
  for (const [name, { ticks, ...axis }] of Object.entries(axes)) layout[name] = { ...shared, ...axis };
  return layout;
}

const CONFIG = { displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] };

// Draw, or draw again as the theme now has it; `spec()` gives traces and layout.
function draw(element, spec) {
  drawn.set(element, spec);
  const { traces, layout } = spec();
  element.style.height = `${layout.height}px`;
  Plotly.react(element, traces, layoutOf(element, layout), CONFIG);
  if (!element.dataset.watched) {
    element.dataset.watched = "yes";
    element.on("plotly_relayout", (change) => retick(element, change));
  }
}

function retick(element, change) {
  const update = {};
  for (const [name, { ticks }] of Object.entries(drawn.get(element)().layout.axes)) {
    if (ticks && Object.keys(change).some((key) => key.startsWith(`${name}.range`) || key.startsWith(`${name}.autorange`))) {
      for (const [key, value] of Object.entries(placed(ticks, element._fullLayout[name].range))) update[`${name}.${key}`] = value;
    }
  }
  if (Object.keys(update).length) Plotly.relayout(element, update);
}

function redrawAtRest(wait = 150) {
  let waiting = 0;
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redrawAll, wait);
  });
}

function redrawAll() {
  for (const [element, spec] of drawn) {
    if (element.isConnected) draw(element, spec);
    else drawn.delete(element);
  }
}
