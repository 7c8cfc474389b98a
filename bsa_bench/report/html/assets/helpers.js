// Elements, text and numbers. What comes from a run only ever becomes text, never markup.
const byId = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("aria-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

function escapeText(text) {
  return String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

// Plotly reads a little markup in names and hovers.
const plotText = escapeText;

const unique = (values) => [...new Set(values)];

function threeDigits(value) {
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(3));
  const decimals = 2 - Math.floor(Math.log10(Math.abs(rounded)));
  return rounded.toFixed(Math.min(Math.max(decimals, 0), 12));
}

function secondsText(seconds) {
  for (const [factor, unit] of [[1, "s"], [1e3, "ms"], [1e6, "us"]]) {
    if (seconds * factor >= 0.9995) return `${threeDigits(seconds * factor)} ${unit}`;
  }
  return `${threeDigits(seconds * 1e9)} ns`;
}

const timeUnit = (longest) => (longest >= 10 ? [1, "s"] : longest >= 1e-3 ? [1e3, "ms"] : [1e6, "us"]);
const bytesUnit = (largest) => (largest >= 2 ** 31 ? [2 ** -30, "GiB"] : [2 ** -20, "MiB"]);

// A choice that narrows something down; `choices` are [value, text].
function choice(title, choices, changed) {
  const select = make("select");
  for (const [value, text] of choices) select.append(make("option", { value, textContent: text }));
  select.addEventListener("change", changed);
  return [select, make("label", {}, title, select)];
}

async function unpack(id) {
  const raw = atob(byId(id).textContent);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function scriptAddress(id) {
  return URL.createObjectURL(new Blob([await unpack(id)], { type: "text/javascript" }));
}

async function loadScript(id) {
  const address = await scriptAddress(id);
  await new Promise((done, failed) => {
    const script = make("script", { src: address, onload: done, onerror: () => failed(new Error(`${id} did not load`)) });
    document.head.append(script);
  });
  URL.revokeObjectURL(address);
}
