// Controls -------------------------------------------------------------------------------------------------------------

function addChoice(parent, type, name, text, checked, onChange) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const span = document.createElement("span");
  Object.assign(input, { type, name, value: text, checked });
  span.textContent = text || "not given";
  input.addEventListener("change", () => onChange(input.checked));
  label.append(input, span);
  parent.append(label);
  return label;
}

function changed() {
  draw();
  record();
}

function addSet(parent, names, chosen) {
  return names.map((name) =>
    addChoice(parent, "checkbox", parent.id, name, chosen().has(name), (checked) => {
      if (checked) chosen().add(name);
      else chosen().delete(name);
      changed();
    }),
  );
}

// Sliders of a study: positions are those of sorted values, so that they are equally far from one another.
const SLIDERS = {
  n: { values: () => runNow().sizes, text: (value) => `${value}`, key: "n" },
  epoch: { values: () => runNow().checkpoints, text: (value) => value.replace(/^epoch /, ""), key: "checkpoint" },
};
const STEP = 900; // ms between the frames of an animation
let player = null;

function stop() {
  if (player === null) return;
  clearInterval(player.timer);
  player.button.textContent = "▶";
  player.button.setAttribute("aria-label", `play over ${player.name}`);
  player = null;
  recordSoon();
}

function place(name, index) {
  const { values, text, key } = SLIDERS[name];
  const input = element(`${name}-slider`);
  state[key] = values()[index];
  input.value = index;
  input.setAttribute("aria-valuetext", text(state[key]));
  element(`${name}-value`).textContent = text(state[key]);
}

function play(name) {
  const again = player !== null && player.name === name;
  stop();
  if (again) return;
  const count = SLIDERS[name].values().length;
  const input = element(`${name}-slider`);
  const button = element(`${name}-play`);
  button.textContent = "⏸";
  button.setAttribute("aria-label", "pause");
  // Axes that change with every frame would hide what moves.
  state.fixed = element("fixed").checked = true;
  const start = Number(input.value) + 1 < count ? Number(input.value) : -1;
  player = { name, button };
  const step = (index) => {
    place(name, index);
    draw();
    if (index + 1 >= count) stop();
  };
  if (start < 0) step(0);
  player.timer = setInterval(() => step(Number(input.value) + 1), STEP);
}

function fillSliders() {
  for (const [name, { values, key }] of Object.entries(SLIDERS)) {
    const known = values();
    const input = element(`${name}-slider`);
    element(`${name}-control`).hidden = !inStudy() || known.length < 2;
    input.max = known.length - 1;
    if (!inStudy()) continue;
    const index = known.indexOf(state[key]);
    place(name, index < 0 ? known.length - 1 : index);
  }
  element("fixed-control").hidden = element("n-control").hidden && element("epoch-control").hidden;
  if (!inStudy()) state.n = null;
}

function fillCheckpoints() {
  fillSliders();
  const names = runNow().checkpoints;
  if (!names.includes(state.checkpoint)) state.checkpoint = names[names.length - 1];
  const parent = element("checkpoints");
  parent.replaceChildren();
  element("checkpoint-control").hidden = inStudy() || names.length < 2;
  if (inStudy()) return;
  for (const name of names) {
    addChoice(parent, "radio", "checkpoint", name, name === state.checkpoint, () => {
      state.checkpoint = name;
      changed();
    });
  }
}

function chooseRun(name) {
  stop();
  state.run = name;
  state.also.delete(name);
  fillCheckpoints();
  changed();
}

// Runs over one another are told apart by colour: at first of one matrix, which others can be added to.
function overlay(name, wanted) {
  const before = compared();
  if (wanted) state.also.add(name);
  else state.also.delete(name);
  if (compared() && !before && state.matrices.size > 1) state.matrices = new Set([matrixNames.find((matrix) => state.matrices.has(matrix))]);
  changed();
}

// Controls show the state, whoever has changed it.
function showState() {
  element("run").value = state.run;
  const others = state.also.size;
  element("compare-now").textContent = others ? `with ${others} other${others === 1 ? "" : "s"}` : "with …";
  for (const input of document.querySelectorAll("input[data-run]")) {
    input.disabled = input.dataset.run === state.run;
    input.checked = input.disabled || state.also.has(input.dataset.run);
  }
  for (const row of document.querySelectorAll("tr[data-run]")) row.classList.toggle("now", row.dataset.run === state.run);
  const shown = [["matrices", state.matrices], ["splits", state.splits], ["checkpoints", new Set([state.checkpoint])], ["axes", new Set([state.axis])]];
  for (const [id, chosen] of shown) for (const input of element(id).querySelectorAll("input")) input.checked = chosen.has(input.value);
  element("fixed").checked = state.fixed;
  [...element("matrices").children].forEach((label, index) => {
    label.style.setProperty("--colour", compared() ? colour("ink") : looks().matrices[index][0].dark);
  });
}

function fillControls() {
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  const run = element("run");
  for (const { name } of data.runs) run.add(new Option(name, name, false, name === state.run));
  run.addEventListener("change", () => chooseRun(run.value));
  element("run-control").hidden = data.runs.length < 2;
  element("compare-control").hidden = data.runs.length < 2 || !data.spectra.length;
  for (const { name } of data.runs) {
    const label = addChoice(element("others"), "checkbox", "with", name, false, (checked) => overlay(name, checked));
    label.firstElementChild.dataset.run = name;
  }
  for (const input of document.querySelectorAll("#runs input[data-run]")) {
    input.addEventListener("change", () => overlay(input.dataset.run, input.checked));
  }
  document.addEventListener("click", (event) => {
    if (!element("compare-control").contains(event.target)) element("compare").open = false;
  });
  fillCheckpoints();
  for (const name of Object.keys(SLIDERS)) {
    element(`${name}-slider`).addEventListener("input", (event) => {
      stop();
      place(name, Number(event.target.value));
      soon();
      recordSoon();
    });
    element(`${name}-play`).addEventListener("click", () => play(name));
  }
  element("fixed").addEventListener("change", (event) => {
    state.fixed = event.target.checked;
    changed();
  });
  addSet(element("matrices"), matrixNames, () => state.matrices).forEach((label, index) => {
    label.className = "matrix";
    label.lastChild.dataset.mark = data.matrices[index].mark;
  });
  element("matrix-control").hidden = data.matrices.length < 2;
  addSet(element("splits"), data.splits, () => state.splits);
  element("split-control").hidden = data.splits.length < 2;
  for (const input of element("axes").querySelectorAll("input")) {
    input.addEventListener("change", () => {
      state.axis = input.value;
      changed();
    });
  }
  fillTheme(() => {
    redraw();
    record(true);
  });
}

function showContents() {
  for (const link of element("contents").querySelectorAll("a")) link.hidden = element(link.hash.slice(1)).closest("section").hidden;
}
