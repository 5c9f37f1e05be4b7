// What the page knows, what it shows, and how that looks ---------------------------------------------------------------

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

// A name that says what a downloaded figure shows.
function fileName(figure) {
  const matrices = figure.id === "training" ? [] : matrixNames.filter((name) => state.matrices.has(name));
  const axes = ["spectrum", "dynamics"].includes(figure.id) ? state.axis : "";
  return fileOf([...runsShown().map((run) => run.name), figure.dataset.name ?? figure.id, ...matrices, ...state.splits, here(), axes]);
}
