// Common to all pages: colours, tables, the library that draws, the address -------------------------------------------------

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const named = (parts) => parts.filter((part) => part !== "").join(", ");
const distinct = (values) => [...new Set(values)];
const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

// Plotly reads HTML tags and, as of a template, `%{...}` in its texts.
const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
const plain = (text) => text.replace(/[&<>]/g, (c) => ESCAPES[c]).replaceAll("%{", "&#37;{");

// The page's own script has `state.theme`, and draws it.
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
const isDark = () => !printing && (state.theme === "dark" || (state.theme === "" && prefersDark.matches));

// Colours of the style sheet, which knows which theme is shown.
const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);
function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function showTheme() {
  document.documentElement.style.colorScheme = printing ? "light" : state.theme || "light dark";
  element("theme").setAttribute("aria-pressed", String(isDark()));
}

// A page from a file may keep nothing, and a browser may refuse to.
function keptTheme(theme) {
  try {
    if (theme !== undefined) localStorage.setItem("hesspec-theme", theme);
    return localStorage.getItem("hesspec-theme") ?? "";
  } catch {
    return "";
  }
}

// Whatever the reader chooses is kept for other pages.
function fillTheme(onChange) {
  element("theme").addEventListener("click", () => {
    state.theme = isDark() ? "light" : "dark";
    keptTheme(state.theme);
    onChange();
  });
}

function followScreen(redraw) {
  prefersDark.addEventListener("change", redraw);
  matchMedia("(max-width: 699px)").addEventListener("change", redraw);
  addEventListener("resize", showScrolls);
}

function followPaper(redraw) {
  // Figures as wide as a sheet of A4 between its margins, in the colours of paper.
  const turn = (on) => {
    printing = on;
    redraw();
    const size = on ? { autosize: false, width: 690, height: 380 } : { autosize: true, width: null, height: null };
    for (const figure of document.querySelectorAll(".js-plotly-plot")) {
      const half = figure.closest(".grid") !== null;
      Plotly.relayout(figure, on && half ? { ...size, width: 340, height: 300 } : size);
    }
  };
  addEventListener("beforeprint", () => turn(true));
  addEventListener("afterprint", () => turn(false));
}

// Tables that are wider than the page say so, and can be scrolled with the keyboard.
function showScrolls() {
  for (const box of document.querySelectorAll(".wide")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("scrolls", scrolls);
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

// Files are made when they are asked for: an address that holds a large one would not be followed.
function fillDownloads(textOf, more = {}) {
  for (const link of document.querySelectorAll("[data-file]")) {
    const name = link.dataset.file;
    if (!(name in data.files || name in more)) {
      link.hidden = true;
      continue;
    }
    Object.assign(link, { download: name, href: "#" });
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const address = URL.createObjectURL(new Blob([textOf(name)], { type: "text/csv;charset=utf-8" }));
      const anchor = Object.assign(document.createElement("a"), { href: address, download: name });
      anchor.click();
      setTimeout(() => URL.revokeObjectURL(address), 10000);
    });
  }
}

// The address belongs to the view: links within the page scroll to their section, and leave it alone.
function fillContents() {
  const contents = element("contents");
  const wide = matchMedia("(min-width: 1240px)");
  const fold = () => (contents.open = wide.matches);
  wide.addEventListener("change", fold);
  fold();
  contents.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    element(link.hash.slice(1)).closest("section").scrollIntoView();
    if (!wide.matches) contents.open = false;
  });
}

// Plotly travels compressed. The text that is unpacked is the one whose digest the page's policy admits.
async function unpackPlotly() {
  try {
    await unpacked();
  } catch (reason) {
    element("too-old").hidden = false;
    console.error(reason);
    return false;
  }
  return true;
}

async function unpacked() {
  const packed = element("plotly");
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  packed.remove();
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
  fillConfig();
}

// The view in the address, which the page's own `address()` writes and reads -------------------------------------------

const THEMES = ["light", "dark"];
const isView = (hash) => hash === "" || hash === "#" || hash.includes("=");

// What the address was set to last: a change to something else comes from the reader.
let recorded = location.hash;

// Choices can be gone back to; a slider that is dragged leaves one entry, not a hundred.
function record(replace = false) {
  const now = address();
  if (now === recorded) return;
  recorded = now;
  if (replace) location.replace(now);
  else location.hash = now;
}

let pending = 0;
function recordSoon() {
  clearTimeout(pending);
  pending = setTimeout(() => record(true), 250);
}
