// Start: unpack, build the table, draw the charts, and keep both in step with filters, theme and paper.
const PRINTED_ROWS = 1000;

function chartChoices(changed) {
  const place = byId("chart-filters");
  const correct = data.rows.filter((row) => row.figures);
  const passes = data.passes.filter((name) => correct.some((row) => row.pass === name));
  const shapes = unique(correct.map((row) => row.shape));
  const [pass, passLabel] = choice("Pass", passes.map((name) => [name, name]), changed);
  const [shape, shapeLabel] = choice("Shape", shapes.map((name, i) => [String(i), name]), changed);
  if (passes.length > 1) place.append(passLabel);
  if (shapes.length > 1) place.append(shapeLabel);
  return (rows) => rows.filter((row) => row.figures && row.pass === (pass.value || passes[0]) && row.shape === shapes[Number(shape.value || 0)]);
}

function preparePaper() {
  let before = null;
  window.addEventListener("beforeprint", () => {
    theme.isPrinting = true;
    before = table.page.len();
    const number = table.page.info().recordsDisplay;
    if (number <= PRINTED_ROWS) table.page.len(-1).draw(false);
    byId("print-note").textContent = number > PRINTED_ROWS ? `${number} rows; the page shown is printed. Narrow the filters to print others.` : "";
    theme.apply();
  });
  window.addEventListener("afterprint", () => {
    theme.isPrinting = false;
    table.page.len(before).draw(false);
    theme.apply();
  });
}

async function start() {
  const [text, address] = await Promise.all([unpack("data"), scriptAddress("datatables"), loadScript("plotly")]);
  data = JSON.parse(text);
  const library = await import(address);
  URL.revokeObjectURL(address);
  let waiting = 0;
  let narrow = null;
  const drawNow = () => drawPanels(narrow(filteredRows()).map((row) => row.figures));
  const redraw = () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawNow, 120);
  };
  buildTable(library.jQuery.fn.dataTable, redraw);
  narrow = chartChoices(redraw);
  await drawNow();
  redrawAtRest();
  theme.listeners.push(redrawAll);
  preparePaper();
  document.documentElement.dataset.ready = "yes";
  performance.mark("bsa-bench-ready");
}

start().catch((error) => {
  const notice = byId("trouble");
  notice.hidden = false;
  notice.textContent = `The table and the charts cannot be shown: ${error.message}. A browser of 2023 or newer shows them.`;
  console.error(error);
});
