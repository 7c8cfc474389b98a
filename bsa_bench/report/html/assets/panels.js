// The charts of one pass and one shape.
const MAX_SERIES = 40;
const MAX_BARS = 60;
const MAX_POINTS = 1500;

function bySeries(rows) {
  const found = new Map();
  const ordered = [...rows].sort((a, b) => a.tokens - b.tokens || (a.density ?? 0) - (b.density ?? 0));
  for (const row of ordered) {
    if (!found.has(row.series)) found.set(row.series, []);
    found.get(row.series).push(row);
  }
  return found;
}

const hover = (row, text) =>
  `<b>${plotText(row.series)}</b><br>${row.tokens.toLocaleString("en")} tokens` +
  (row.density ? `, density ${threeDigits(row.density)}` : "") + `<br>${text}<extra></extra>`;
const speedupHover = (row) =>
  hover(row, `${threeDigits(row.speedup[0])}x [${threeDigits(row.speedup[1])}, ${threeDigits(row.speedup[2])}], ideal ${row.ideal ? threeDigits(row.ideal) + "x" : "unknown"}`);
const latencyHover = (row) =>
  hover(row, `${secondsText(row.latency[0])} [${secondsText(row.latency[1])}, ${secondsText(row.latency[2])}]`);

const atOne = () => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: grey(), width: 1.3 } });
const ratios = (rows) => rows.flatMap((row) => [...row.speedup, row.ideal ?? row.speedup[0]]).concat(1);

function speedupByTokens(rows) {
  const lengths = unique(rows.map((row) => row.tokens));
  const settings = new Map();
  for (const row of rows) {
    if (!row.ideal) continue;
    if (!settings.has(row.setting)) settings.set(row.setting, new Map());
    settings.get(row.setting).set(row.tokens, row.ideal);
  }
  const dashes = ["dot", "dashdot", "longdashdot"];
  return () => {
    const traces = [];
    if (settings.size <= dashes.length) {
      [...settings].forEach(([setting, points], i) => {
        const ordered = [...points].sort((a, b) => a[0] - b[0]);
        traces.push({
          name: plotText(setting ? `ideal, 1/density (${setting})` : "ideal, 1/density"),
          x: ordered.map(([tokens]) => tokens), y: ordered.map(([, ideal]) => ideal), mode: "lines+markers",
          line: { color: grey(), dash: dashes[i] }, marker: { symbol: "line-ew-open", size: 12, color: grey() }, hoverinfo: "name+y",
        });
      });
    } else {
      for (const [name, line] of bySeries(rows.filter((row) => row.ideal))) {
        traces.push({
          name: "ideal, 1/density", legendgroup: "ideal", showlegend: traces.length === 0, mode: "lines+markers",
          x: line.map((row) => row.tokens), y: line.map((row) => row.ideal), hoverinfo: "y",
          line: { color: onPage(data.looks[name].colour), dash: "dot", width: 1 }, marker: { symbol: "line-ew-open", size: 12, color: onPage(data.looks[name].colour) },
        });
      }
    }
    for (const [name, points] of bySeries(rows)) {
      traces.push({
        ...line(name), x: points.map((row) => row.tokens), y: points.map((row) => row.speedup[0]),
        error_y: whiskers(points.map((row) => row.speedup)), hovertemplate: points.map(speedupHover),
      });
    }
    return {
      traces,
      layout: {
        height: 440, shapes: [atOne()],
        axes: { xaxis: logAxis("Tokens (log2)", lengths, lengthTicks(lengths)), yaxis: logAxis("Speed-up over the fastest dense (log2)", ratios(rows), ratioTicks) },
      },
    };
  };
}

function speedupByDensity(rows) {
  const densities = unique(rows.map((row) => row.density)).sort((a, b) => a - b);
  const merged = new Map();
  for (const row of rows) {
    if (!merged.has(row.series)) merged.set(row.series, []);
    merged.get(row.series).push(row);
  }
  return () => ({
    traces: [
      { name: "ideal, 1/density", x: densities, y: densities.map((d) => 1 / d), mode: "lines", line: { color: grey(), dash: "dot" }, hoverinfo: "name+y" },
      ...[...merged].map(([name, points]) => ({
        ...line(name, { joined: points.length > 1 }), x: points.map((row) => row.density), y: points.map((row) => row.speedup[0]),
        error_y: whiskers(points.map((row) => row.speedup)), hovertemplate: points.map(speedupHover),
      })),
    ],
    layout: {
      height: 440, shapes: [atOne()],
      axes: { xaxis: logAxis("Realised density (log)", densities, roundTicks), yaxis: logAxis("Speed-up over the fastest dense (log2)", ratios(rows), ratioTicks) },
    },
  });
}

// Lines against tokens, or a list where there is a single length.
function levels(rows, { value, unit, title, text }) {
  const [factor, name] = unit(Math.max(...rows.map((row) => value(row)[2])));
  const axis = `${title} [${name}] (log)`;
  const all = rows.flatMap((row) => value(row).map((v) => v * factor));
  const lengths = unique(rows.map((row) => row.tokens));
  const listed = lengths.length === 1;
  const order = [...rows].sort((a, b) => value(b)[0] - value(a)[0]);
  return () => ({
    traces: [...bySeries(rows)].map(([series, points]) => {
      const middles = points.map((row) => value(row)[0] * factor);
      const bars = whiskers(points.map(value), factor);
      const where = listed ? points.map((row) => plotText(row.series)) : points.map((row) => row.tokens);
      return {
        ...line(series, { joined: !listed }), x: listed ? middles : where, y: listed ? where : middles,
        [listed ? "error_x" : "error_y"]: bars, hovertemplate: points.map(text), showlegend: !listed,
      };
    }),
    layout: listed
      ? {
          height: 110 + 26 * order.length,
          axes: { xaxis: logAxis(axis, all, roundTicks), yaxis: { type: "category", categoryorder: "array", categoryarray: unique(order.map((row) => plotText(row.series))) } },
        }
      : { height: 440, axes: { xaxis: logAxis("Tokens (log2)", lengths, lengthTicks(lengths)), yaxis: logAxis(axis, all, roundTicks) } },
  });
}

function errorAgainstSpeedup(rows) {
  const errors = rows.map((row) => row.error).filter((error) => error > 0);
  const isLog = errors.length === rows.length && Math.max(...errors) / Math.min(...errors) > 10;
  const title = "Error against dense (relative L2)";
  return () => ({
    traces: [...bySeries(rows)].map(([name, points]) => ({
      ...line(name, { joined: false }), x: points.map((row) => row.error), y: points.map((row) => row.speedup[0]),
      error_y: whiskers(points.map((row) => row.speedup)), hovertemplate: points.map((row) => hover(row, `${threeDigits(row.speedup[0])}x at an error of ${row.error.toPrecision(3)}`)),
    })),
    layout: {
      height: 440, shapes: [atOne()],
      axes: {
        xaxis: isLog ? logAxis(`${title} (log)`, errors, roundTicks) : { title: { text: title }, rangemode: "tozero" },
        yaxis: logAxis("Speed-up over the fastest dense (log2)", rows.flatMap((row) => row.speedup).concat(1), ratioTicks),
      },
    },
  });
}

function phaseStack(rows) {
  const shown = [...rows].sort((a, b) => b.tokens - a.tokens).slice(0, MAX_BARS).reverse();
  const names = data.phases.order.filter((name) => shown.some((row) => name in row.phases));
  names.push(...unique(shown.flatMap((row) => Object.keys(row.phases))).filter((name) => !names.includes(name)));
  const bar = (row) => `${plotText(row.series)}  ${row.tokens.toLocaleString("en")}`;
  const total = (row) => Object.values(row.phases).reduce((a, b) => a + b, 0) || 1;
  return () => ({
    traces: names.map((name) => ({
      type: "bar", orientation: "h", name: plotText(name.replaceAll("_", " ")), y: shown.map(bar),
      x: shown.map((row) => (100 * (row.phases[name] ?? 0)) / total(row)),
      text: shown.map((row) => ((row.phases[name] ?? 0) / total(row) > 0.06 ? plotText(name.replaceAll("_", " ")) : "")),
      textposition: "inside", insidetextanchor: "middle", textfont: { size: 11 }, constraintext: "inside", textangle: 0,
      marker: {
        color: data.phases.colours[name.replace(/_backward$/, "")] ?? data.grey,
        pattern: { shape: name.endsWith("_backward") ? "/" : "", solidity: 0.2, size: 7, fgcolor: "#ffffff" },
        line: { color: theme.colour("page"), width: 0.8 },
      },
      hovertemplate: shown.map((row) => hover(row, `${plotText(name.replaceAll("_", " "))}: ${secondsText(row.phases[name] ?? 0)}, whole operator ${secondsText(row.latency[0])}`)),
    })),
    layout: {
      height: 120 + 26 * shown.length, barmode: "stack",
      axes: { xaxis: { title: { text: "Share of the phases' sum [%]" }, range: [0, 100] }, yaxis: { type: "category" } },
    },
  });
}

// Which charts there are for these rows: [title, what to know, spec].
function chartsOf(rows) {
  const found = [];
  const timers = unique(rows.map((row) => row.timer)).join(" and ");
  const compared = rows.filter((row) => row.speedup && row.ideal);
  const longest = Math.max(...rows.map((row) => row.tokens));
  if (compared.length && unique(compared.map((row) => row.tokens)).length > 1) {
    found.push(["Speed-up against length", timers, speedupByTokens(compared)]);
  }
  const atLongest = compared.filter((row) => row.tokens === longest && row.density);
  if (unique(atLongest.map((row) => row.density.toPrecision(2))).length > 1) {
    found.push(["Speed-up against density", `${longest.toLocaleString("en")} tokens; ${timers}`, speedupByDensity(atLongest)]);
  }
  const level = { value: (row) => row.latency, unit: timeUnit, title: "Median latency", text: latencyHover };
  found.push(["Latency", timers, levels(rows, level)]);
  const peaked = rows.filter((row) => row.memory);
  if (peaked.length) {
    const memory = {
      value: (row) => [row.memory, row.memory, row.memory], unit: bytesUnit, title: "Peak memory above inputs",
      text: (row) => { const [factor, unit] = bytesUnit(row.memory); return hover(row, `${threeDigits(row.memory * factor)} ${unit}`); },
    };
    found.push(["Peak memory", "an untimed pass of its own", levels(peaked, memory)]);
  }
  const known = compared.filter((row) => row.error !== null);
  if (known.length) found.push(["Fidelity against speed", "up and to the left is better", errorAgainstSpeedup(known)]);
  const phased = rows.filter((row) => Object.keys(row.phases).length);
  if (phased.length) {
    const left = phased.length > MAX_BARS ? `${MAX_BARS} of ${phased.length} rows, the longest; ` : "";
    found.push(["Where the time goes", `${left}backward phases are hatched`, phaseStack(phased)]);
  }
  return found;
}

let round = 0;

// One chart after another, so that the page answers meanwhile; a newer round ends an older one.
async function drawPanels(rows) {
  round += 1;
  const own = round;
  const place = byId("charts");
  const names = unique(rows.map((row) => row.series));
  const kept = new Set(names.slice(0, MAX_SERIES));
  const inSeries = rows.filter((row) => kept.has(row.series));
  const lengths = unique(inSeries.map((row) => row.tokens)).sort((a, b) => b - a);
  const every = Math.ceil(inSeries.length / MAX_POINTS);
  const keptLengths = new Set(lengths.filter((_, i) => i % every === 0));
  const shown = lengths.length < every ? inSeries : inSeries.filter((row) => keptLengths.has(row.tokens));
  for (const old of place.querySelectorAll(".plot")) {
    Plotly.purge(old);
    drawn.delete(old);
  }
  place.replaceChildren();
  if (!shown.length) {
    place.append(make("p", { class: "notice", textContent: "No correct row to draw: none was measured and verified, or the filters leave none." }));
    return;
  }
  if (names.length > kept.size) {
    place.append(make("p", { class: "notice", textContent: `${kept.size} of ${names.length} series are drawn; narrow the filters to choose.` }));
  }
  if (shown.length < inSeries.length) {
    place.append(make("p", { class: "notice", textContent: `${keptLengths.size} of ${lengths.length} lengths are drawn; narrow the filters for others.` }));
  }
  for (const [title, about, spec] of chartsOf(shown)) {
    await new Promise((done) => { setTimeout(done); });
    if (own !== round) return;
    const plot = make("div", { class: "plot", role: "figure", "aria-label": `${title}; the table above holds the same figures` });
    place.append(make("div", { class: "chart" }, make("h3", { textContent: title }), make("p", { textContent: about }), plot));
    draw(plot, spec);
  }
}
