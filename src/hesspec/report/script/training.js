// Training ------------------------------------------------------------------------------------------------------------

function drawTraining() {
  const figure = element("training");
  if (!figure) return;
  const mine = data.training.filter((entry) => entry.run === state.run);
  const item = mine.find((entry) => entry.n === state.n) ?? (data.runs.length === 1 && !inStudy() ? data.training[0] : undefined);
  figure.closest("section").hidden = item === undefined && !mine.length;
  element("training-place").textContent = inStudy() ? `, n = ${state.n}` : "";
  if (item === undefined) {
    show(figure, [], { annotations: [message("There is no record of this training yet.")] });
    element("training-caption").textContent = "";
    return;
  }
  const losses = item.traces.filter((trace) => trace.yaxis === "y").flatMap((trace) => trace.y);
  const positive = losses.every((loss) => loss === null || loss > 0);
  const lines = item.rates.flatMap(({ x }) =>
    ["", "2"].map((name) => ({
      type: "line", xref: `x${name}`, yref: `y${name} domain`, x0: x, x1: x, y0: 0, y1: 1, layer: "below",
      line: { color: colour("soft"), width: 1, dash: "dot" },
    })),
  );
  const epochs = item.traces.flatMap((trace) => trace.x);
  // Two panels: next to one another, or one above the other where the page is narrow.
  const [left, right, lower] = narrow() ? [[0, 1], [0, 1], [0, 0.42]] : [[0, 0.46], [0.56, 1], [0, 1]];
  const tones = isDark() ? data.training_looks.dark : data.training_looks.light;
  show(
    figure,
    item.traces.map((trace) => ({ ...trace, line: { ...trace.line, color: tones[trace.legendgroup] }, marker: { ...trace.marker, color: tones[trace.legendgroup] } })),
    {
      xaxis: epochAxis(epochs, { domain: left, anchor: "y" }),
      xaxis2: epochAxis(epochs, { domain: right, anchor: "y2" }),
      yaxis: axis("mean loss", { type: positive ? "log" : "linear", domain: narrow() ? [0.58, 1] : [0, 1] }),
      yaxis2: axis("error", { anchor: "x2", tickformat: ".3~%", rangemode: "tozero", domain: lower }),
      shapes: lines,
    },
  );
  element("training-caption").textContent = item.rates.length
    ? `Dotted lines: the learning rate changes, to ${item.rates.map((rate) => `${rate.text} after epoch ${rate.x}`).join(", ")}.`
    : "";
}
