// The view in the address ----------------------------------------------------------------------------------------------

// A view is what follows "#": `run=...&checkpoint=...&matrix=...`. A link without a part of it shows the default of that.
function address() {
  const words = new URLSearchParams();
  if (data.runs.length > 1) words.set("run", state.run);
  for (const name of state.also) words.append("with", name);
  if (inStudy()) words.set("n", state.n);
  if (runNow().checkpoints.length > 1) words.set("checkpoint", state.checkpoint);
  if (data.matrices.length > 1) for (const name of state.matrices.size ? state.matrices : [""]) words.append("matrix", name);
  if (data.splits.length > 1) for (const name of state.splits.size ? state.splits : [""]) words.append("split", name);
  if (data.spectra.length) words.set("axis", state.axis);
  if (state.fixed) words.set("fixed", "yes");
  if (state.theme) words.set("theme", state.theme);
  return `#${words}`;
}

const AXES = ["linear", "bulk", "log"];

function restore(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const known = (name, values, otherwise) => (values.includes(words.get(name)) ? words.get(name) : otherwise);
  const several = (name, values, otherwise) => new Set(words.has(name) ? values.filter((value) => words.getAll(name).includes(value)) : otherwise);
  const first = initial();
  const runs = data.runs.map((run) => run.name);
  state.run = known("run", runs, first.run);
  state.also = several("with", runs.filter((name) => name !== state.run), []);
  const run = runNow();
  const at = state.run === first.run ? first : { n: run.sizes[run.sizes.length - 1] ?? null, checkpoint: run.checkpoints[run.checkpoints.length - 1] };
  state.n = run.sizes.includes(Number(words.get("n"))) ? Number(words.get("n")) : at.n;
  state.checkpoint = known("checkpoint", run.checkpoints, at.checkpoint);
  state.matrices = several("matrix", matrixNames, compared() ? matrixNames.slice(0, 1) : first.matrices);
  state.splits = several("split", data.splits, first.splits);
  state.axis = known("axis", AXES, first.axis);
  state.fixed = words.get("fixed") === "yes";
  const kept = keptTheme();
  state.theme = known("theme", THEMES, THEMES.includes(kept) ? kept : "");
}
