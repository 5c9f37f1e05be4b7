// Draws everything: the first time, and what has changed later -----------------------------------------------------------

// Figures that do not depend on what has changed are left alone.
const drawnFor = {};
function once(name, key, make) {
  const now = JSON.stringify(key);
  if (drawnFor[name] === now) return;
  drawnFor[name] = now;
  make();
}

function draw() {
  showTheme();
  showState();
  if (data.spectra.length) drawSelected();
  once("training", [state.run, state.n], drawTraining);
  showContents();
}

function statusWords(members) {
  const absent = missing(members);
  const counts = members.map((item) => `${nameOf(item) || "spectrum"}: ${item.count || "no"} outlier${item.count === 1 ? "" : "s"}`);
  const shown = members.length ? `Shown${here() ? ` at ${here()}` : ""}: ${counts.join("; ")}.` : "Nothing is shown.";
  return absent.length && inStudy() ? `${shown} Not measured yet${members.length ? "" : ` at ${here()}`}: ${absent.join("; ")}.` : shown;
}

const HEADLINES = 3; // sentences above the figure, which would otherwise be pushed down

// The headline is about what is shown. It keeps its height, so that figures stay where they are.
function showHeadline(members) {
  const box = element("headline");
  box.style.minHeight ||= `${box.offsetHeight}px`;
  if (!members.length) return;
  box.replaceChildren(
    ...members.slice(0, HEADLINES).map((item, index) => {
      const [sentence, about] = [document.createElement("p"), document.createElement("span")];
      sentence.className = index ? "also" : "lead";
      about.className = "of";
      about.textContent = `${data.runs.length > 1 ? `${item.run} · ` : ""}${item.title}:`;
      sentence.append(about, ` ${item.sentence}.`);
      return sentence;
    }),
  );
}

function drawSelected() {
  const members = selected();
  const words = statusWords(members);
  element("status").textContent = words;
  element("spectrum").setAttribute("aria-label", `Spectrum. ${words}`);
  const runs = data.runs.length > 1 ? runsShown().map((run) => run.name).join(" and ") : "";
  element("spectrum-place").textContent = [runs, here()].map((part) => (part ? `, ${part}` : "")).join("");
  showHeadline(members);
  const chosen = [state.run, [...state.also], [...state.matrices], [...state.splits]];
  fillTables(members);
  labelled = "";
  drawSpectrum(members);
  once("dynamics", [...chosen, state.n, state.axis, state.checkpoint, state.fixed], drawDynamics);
  once("samples", [...chosen, state.checkpoint, state.n], drawSamples);
  once("pairs", [state.run, [...state.splits], state.n, state.checkpoint], drawPairs);
}

// A slider that is dragged asks for more pictures than a screen shows.
let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

// Everything again, in other colours or another width.
function redraw() {
  for (const name of Object.keys(drawnFor)) delete drawnFor[name];
  draw();
  drawStructures();
}

function labelFigure() {
  if (!data.spectra.length || !window.Plotly) return;
  element("spectrum").on("plotly_afterplot", labelOutliers);
  labelOutliers();
}

function react() {
  addEventListener("hashchange", () => {
    if (location.hash === recorded || !isView(location.hash)) return;
    recorded = location.hash;
    stop();
    const dark = isDark();
    restore(location.hash);
    fillCheckpoints();
    if (isDark() === dark) draw();
    else redraw();
  });
  followScreen(redraw);
  for (const part of structures()) part.addEventListener("toggle", () => drawStructure(part));
  followPaper(redraw);
}

async function start() {
  if (isView(location.hash)) restore(location.hash);
  fillControls();
  fillContents();
  react();
  draw(); // what needs no figures is here at once
  if (!(await unpackPlotly())) return;
  redraw();
  labelFigure();
  document.documentElement.dataset.drawn = "yes";
}

start();
