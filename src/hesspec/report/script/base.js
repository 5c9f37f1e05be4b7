// What the page knows, what it shows, and how that looks ---------------------------------------------------------------

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const named = (parts) => parts.filter((part) => part !== "").join(", ");
const distinct = (values) => [...new Set(values)];
const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

// Plotly reads HTML tags and, as of a template, `%{...}` in its texts.
const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
const plain = (text) => text.replace(/[&<>]/g, (c) => ESCAPES[c]).replaceAll("%{", "&#37;{");

const matrixNames = data.matrices.map((matrix) => matrix.name);
const initial = () => ({
  run: data.first.run,
  also: new Set(), // runs that are drawn over it
  n: data.first.n,
  checkpoint: data.first.checkpoint,
  matrices: new Set(matrixNames),
  splits: new Set([data.first.split]),
  axis: "linear",
  fixed: false,
  theme: "",
});
const state = initial();

const runNamed = (name) => data.runs.find((run) => run.name === name);
const runNow = () => runNamed(state.run);
const runsShown = () => data.runs.filter(({ name }) => name === state.run || state.also.has(name));
const compared = () => runsShown().length > 1;
const inStudy = () => runNow().sizes.length > 0;
const sizeWords = (n) => (n === null ? "" : `n = ${n}`);

// Where a run is shown: at the chosen sample size and checkpoint, or at its last where it has no such.
function placeIn(name) {
  const run = runNamed(name);
  const kept = (values, value) => (values.includes(value) ? value : values[values.length - 1]);
  return { n: run.sizes.length ? kept(run.sizes, state.n) : null, checkpoint: kept(run.checkpoints, state.checkpoint) };
}

const isChosen = (item) =>
  (item.run === state.run || state.also.has(item.run)) && state.matrices.has(item.matrix) && state.splits.has(item.split);
const atSize = (item) => item.n === placeIn(item.run).n;
const atCheckpoint = (item) => item.checkpoint === placeIn(item.run).checkpoint;
const selected = () => data.spectra.filter((item) => isChosen(item) && atSize(item) && atCheckpoint(item));
const here = () => named([inStudy() ? sizeWords(state.n) : "", state.checkpoint]);

// Of several runs the name says what differs: the run, and its matrix, split and place where there is more than one.
function nameOf(item) {
  if (!compared()) return named([item.matrix, item.split]);
  const place = placeIn(item.run);
  return named([
    item.run,
    state.matrices.size > 1 ? item.matrix : "",
    state.splits.size > 1 ? item.split : "",
    place.n === state.n ? "" : sizeWords(place.n),
    place.checkpoint === state.checkpoint ? "" : place.checkpoint,
  ]);
}

// What is chosen and was measured somewhere in the run, but not here.
const missing = (members) =>
  runNow()
    .measured.filter(([matrix, split]) => isChosen({ run: state.run, matrix, split }))
    .filter(([matrix, split]) => !members.some((item) => item.run === state.run && item.matrix === matrix && item.split === split))
    .map(named);

// Looks ----------------------------------------------------------------------------------------------------------------

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
const isDark = () => !printing && (state.theme === "dark" || (state.theme === "" && prefersDark.matches));
const looks = () => (isDark() ? data.looks.dark : data.looks.light);

// The colour of a matrix is the same everywhere; of several runs each has a colour, and each matrix keeps its mark.
function lookOf(item) {
  const own = looks().matrices[matrixNames.indexOf(item.matrix)][data.splits.indexOf(item.split)];
  if (!compared()) return own;
  const palette = looks().runs;
  const { light, dark, area } = palette[data.runs.findIndex((run) => run.name === item.run) % palette.length];
  return { ...own, light, dark, area, line: { ...own.line, color: light } };
}
// The marks of negative values on a logarithmic axis.
const hollow = (symbol) => symbol.replace(/(-dot)?$/, "-open$1");
const legendGroup = (item) => `${item.run}/${item.matrix}/${item.split}`;

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
