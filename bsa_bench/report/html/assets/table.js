// The table of all rows, its filters, and the rows that it opens.
const filters = new Map(); // name -> [select, test of a row]
let table = null;

// Missing figures come last, upwards and downwards.
function figureOrder(sign) {
  return (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : sign * (a < b ? -1 : 1));
}

function buildTable(DataTable, changed) {
  Object.assign(DataTable.ext.type.order, { "figure-asc": figureOrder(1), "figure-desc": figureOrder(-1) });
  const several = data.runs.length > 1;
  const shapes = unique(data.rows.map((row) => row.shape));
  if (shapes.length === 1) byId("cases-shape").textContent = `Shape of all: ${shapes[0]}.`;
  const columns = [
    { title: "", data: null, orderable: false, searchable: false, className: "open", render: (_, type, row) => (type === "display" ? `<button type="button" aria-expanded="false" aria-label="Open ${escapeText(row.behind.id)}"></button>` : "") },
    ...(several ? [{ title: "Run", data: null, render: (_, type, row) => shown(data.runs[row.run], data.runs[row.run], type) }] : []),
    ...data.columns.map((column, i) => ({
      title: column.title,
      data: null,
      type: column.isFigure ? "figure" : "string",
      className: column.isFigure ? "figure" : i === 0 ? "name" : "",
      visible: column.title !== "Shape" || shapes.length > 1,
      render: (_, type, row) => shown(...row.cells[i], type, i === 0 ? `${row.behind.id} ${row.behind.reason ?? ""}` : ""),
    })),
  ];
  table = new DataTable(byId("cases"), {
    data: data.rows,
    columns,
    deferRender: true,
    autoWidth: false,
    order: [],
    pageLength: 50,
    lengthMenu: [25, 50, 100, 250, 1000],
    layout: { topStart: "info", topEnd: "search", bottomStart: "pageLength", bottomEnd: "paging" },
    language: { search: "Search ", emptyTable: "No case has a result." },
    createdRow: (element, row) => element.classList.toggle("without-figure", row.figures === null),
    headerCallback: (head) => {
      for (const cell of head.querySelectorAll("th")) {
        cell.title = data.columns.find((column) => column.title === cell.textContent)?.about ?? "";
      }
    },
  });
  byId("cases").addEventListener("click", (event) => {
    const button = event.target.closest("td.open button");
    if (button) toggle(table.row(button.closest("tr")), button);
  });
  buildFilters(several, changed);
  table.on("search", changed);
}

function shown(text, key, type, also = "") {
  if (type === "display") return escapeText(text);
  if (type === "filter") return escapeText(`${text} ${also}`);
  return typeof key === "string" || key === null ? key : Number(key);
}

function toggle(row, button) {
  const isOpen = row.child.isShown();
  button.setAttribute("aria-expanded", String(!isOpen));
  if (isOpen) {
    row.child.hide();
    return;
  }
  const [box, draws] = behindRow(row.data());
  row.child(box, "child").show();
  draws();
}

function buildFilters(several, changed) {
  const place = byId("filters");
  const add = (name, values, test, text = String) => {
    if (values.length < 2) return;
    const update = () => table.draw();
    const [select, label] = choice(name, [["", "all"], ...values.map((value, i) => [String(i), text(value)])], update);
    filters.set(name, [select, (row) => select.value === "" || test(row, values[Number(select.value)])]);
    place.append(label);
  };
  const rows = data.rows;
  if (several) add("Run", data.runs.map((_, i) => i), (row, value) => row.run === value, (i) => data.runs[i]);
  add("Implementation", unique(rows.map((row) => row.implementation)).sort(), (row, value) => row.implementation === value);
  add("Pass", data.passes.filter((name) => rows.some((row) => row.pass === name)), (row, value) => row.pass === value);
  add("Tokens", unique(rows.map((row) => row.tokens)).sort((a, b) => a - b), (row, value) => row.tokens === value, (n) => n.toLocaleString("en"));
  add("Shape", unique(rows.map((row) => row.shape)), (row, value) => row.shape === value);
  add("Status", unique(rows.map((row) => row.status)), (row, value) => row.status === value);
  const found = unique(rows.flatMap((row) => row.marks));
  if (found.length) add("Marks", ["none", ...found], (row, value) => (value === "none" ? !row.marks.length : row.marks.includes(value)));
  const clear = make("button", { type: "button", textContent: "Clear filters" });
  clear.addEventListener("click", () => {
    for (const [select] of filters.values()) select.value = "";
    table.search("").draw();
  });
  place.append(clear);
  table.search.fixed("filters", (_, row) => [...filters.values()].every(([, test]) => test(row)));
}

const filteredRows = () => table.rows({ search: "applied", order: "index" }).data().toArray();
