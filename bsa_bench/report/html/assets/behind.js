// What a row opens to.
function factList(title, facts) {
  const list = make("dl");
  for (const [name, value] of Object.entries(facts)) list.append(make("dt", { textContent: name }), make("dd", { textContent: value }));
  return make("div", {}, make("h4", { textContent: title }), list);
}

function commandBlock(command) {
  const button = make("button", { type: "button", textContent: "Copy" });
  const text = make("pre", { textContent: command });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
  });
  return make("div", {}, make("h4", { textContent: "Measure this case again" }), make("div", { class: "command" }, text, button));
}

function checksTable(checks) {
  const head = make("tr");
  for (const name of ["Output", "Relative L2 error", "Budget", "Largest error", "Its budget", "Cosine"]) head.append(make("th", { textContent: name }));
  const body = make("tbody");
  for (const line of checks) {
    const row = make("tr");
    for (const text of line) row.append(make("td", { textContent: text }));
    body.append(row);
  }
  return make("div", { class: "wide" }, make("h4", { textContent: "Checked outputs against the masked oracle" }), make("table", { class: "plain checks" }, make("thead", {}, head), body));
}

const SAMPLE_SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon"];

function middleOf(values) {
  const ordered = [...values].sort((a, b) => a - b);
  const half = ordered.length >> 1;
  return ordered.length % 2 ? ordered[half] : (ordered[half - 1] + ordered[half]) / 2;
}

// Left: the samples in order, process by process, each with its median; right: the same as a strip for each process.
function samplesChart(processes) {
  const entries = Object.entries(processes);
  const [factor, unit] = timeUnit(Math.max(...entries.flatMap(([, values]) => values)));
  const one = entries.length === 1;
  return () => {
    const colours = Object.values(data.phases.colours).map(onPage);
    const traces = [];
    const shapes = [];
    let start = 1;
    entries.forEach(([name, values], i) => {
      const y = values.map((value) => value * factor);
      const x = y.map((_, k) => start + k * data.every);
      const end = x.at(-1);
      const marker = { color: colours[i % colours.length], symbol: SAMPLE_SYMBOLS[i % SAMPLE_SYMBOLS.length], size: 6 };
      const middle = middleOf(y);
      traces.push(
        { name: `process ${name}`, x, y, mode: "markers", marker, hovertemplate: `sample %{x}, process ${name}<br>%{y:.4g} ${unit}<extra></extra>` },
        { x: [x[0], end], y: [middle, middle], mode: "lines", line: { color: marker.color, width: 2 }, hovertemplate: `median of process ${name}<br>%{y:.4g} ${unit}<extra></extra>`, showlegend: false },
        { type: "box", name: one ? "all" : name, y, xaxis: "x2", boxpoints: "all", jitter: 0.7, pointpos: 0, marker: { ...marker, size: 5, opacity: 0.75 }, line: { width: 1.2, color: marker.color }, fillcolor: "rgba(0,0,0,0)", showlegend: false, hoverinfo: "y" },
      );
      if (i) shapes.push({ type: "line", x0: start - 0.5, x1: start - 0.5, yref: "paper", y0: 0, y1: 1, line: { color: grey(), width: 1, dash: "dot" } });
      start = end + data.every;
    });
    const narrow = window.innerWidth < 700;
    return {
      traces,
      layout: {
        height: 280, shapes, showlegend: !one && !narrow,
        axes: {
          xaxis: { title: { text: one ? "Sample, in order" : "Sample, in order, process by process" }, domain: [0, 0.64] },
          xaxis2: { title: { text: one ? "Strip" : "Process" }, domain: [0.7, 1], type: "category" },
          yaxis: { title: { text: `Latency [${unit}]` }, rangemode: "normal" },
        },
      },
    };
  };
}

function behindRow(row) {
  const { behind } = row;
  const box = make("div", { class: "behind" }, make("p", {}, make("code", { textContent: behind.id })));
  if (behind.reason) box.append(make("p", {}, make("b", { textContent: `${row.status}: ` }), behind.reason));
  box.append(
    behind.command
      ? commandBlock(behind.command)
      : make("p", { textContent: "No command measures this case again: its run was not started by bsa-bench run --suite." }),
  );
  let draws = () => {};
  if (Object.keys(behind.samples).length) {
    const plot = make("div", { class: "samples plot", role: "figure", "aria-label": "Samples in order, and as a strip for each process" });
    const every = data.every > 1 ? ` (one in ${data.every}; the results file has all)` : "";
    box.append(make("h3", { textContent: `Samples${every}` }), plot);
    draws = () => draw(plot, samplesChart(behind.samples));
  }
  if (behind.checks.length) box.append(checksTable(behind.checks));
  const columns = make("div", { class: "columns" });
  for (const [title, facts] of Object.entries(behind.sections)) columns.append(factList(title, facts));
  box.append(columns);
  if (behind.traceback) box.append(make("details", {}, make("summary", { textContent: "Traceback" }), make("pre", { textContent: behind.traceback })));
  return [box, draws];
}
