"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const named = (parts) => parts.filter((part) => part !== "").join(", ");

  const state = {
    run: data.first.run,
    checkpoint: data.first.checkpoint,
    matrices: new Set(data.matrices.map((matrix) => matrix.name)),
    splits: new Set([data.first.split]),
    axis: "linear",
  };

  // Controls ---------------------------------------------------------------------------------------------------------

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

  function addSet(parent, names, chosen) {
    return names.map((name) =>
      addChoice(parent, "checkbox", parent.id, name, chosen.has(name), (checked) => {
        if (checked) chosen.add(name);
        else chosen.delete(name);
        draw();
      }),
    );
  }

  function fillCheckpoints() {
    const names = data.runs.find((run) => run.name === state.run).checkpoints;
    if (!names.includes(state.checkpoint)) state.checkpoint = names[names.length - 1];
    const parent = element("checkpoints");
    parent.replaceChildren();
    for (const name of names) {
      addChoice(parent, "radio", "checkpoint", name, name === state.checkpoint, () => {
        state.checkpoint = name;
        draw();
      });
    }
    element("checkpoint-control").hidden = names.length < 2;
  }

  function fillControls() {
    const run = element("run");
    for (const { name } of data.runs) run.add(new Option(name, name, false, name === state.run));
    run.addEventListener("change", () => {
      state.run = run.value;
      fillCheckpoints();
      draw();
    });
    element("run-control").hidden = data.runs.length < 2;
    fillCheckpoints();
    const labels = addSet(element("matrices"), data.matrices.map((matrix) => matrix.name), state.matrices);
    labels.forEach((label, index) => {
      label.className = "matrix";
      label.style.setProperty("--colour", data.matrices[index].colour);
      label.lastChild.dataset.mark = data.matrices[index].mark;
    });
    element("matrix-control").hidden = data.matrices.length < 2;
    addSet(element("splits"), data.splits, state.splits);
    element("split-control").hidden = data.splits.length < 2;
    for (const input of element("axes").querySelectorAll("input")) {
      input.addEventListener("change", () => {
        state.axis = input.value;
        draw();
      });
    }
  }

  const isChosen = (item) => item.run === state.run && state.matrices.has(item.matrix) && state.splits.has(item.split);
  const selected = () => data.spectra.filter((item) => isChosen(item) && item.checkpoint === state.checkpoint);

  // Common to all figures --------------------------------------------------------------------------------------------

  const CONFIG = {
    responsive: true,
    displaylogo: false,
    // A list of what there is, not of what there is not: plotly.js 4 adds a button that sends the data to a server.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg", filename: "hesspec" },
  };

  const axis = (title, rest) => ({
    title: { text: title, standoff: 8, font: { size: 14 } },
    showline: true,
    linecolor: "#5a626b",
    ticks: "outside",
    tickcolor: "#5a626b",
    gridcolor: "#e8ebee",
    zeroline: false,
    exponentformat: "power",
    showexponent: "all",
    ...rest,
  });

  // One tick a decade, or every second or third where there are many.
  const decades = ([low, high]) => Math.max(1, Math.ceil((high - low) / 9));

  function layout(rest) {
    return {
      margin: { l: 96, r: 24, t: 12, b: 58 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 14, color: "#1d2126" },
      paper_bgcolor: "#fff",
      plot_bgcolor: "#fff",
      hovermode: "closest",
      hoverlabel: { bgcolor: "#fff", bordercolor: "#5a626b", align: "left", font: { size: 13, color: "#1d2126" } },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
      ...rest,
    };
  }

  function padded(low, high, share) {
    const margin = (high - low || Math.abs(high) || 1) * share;
    return [low - margin, high + margin];
  }

  const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

  // Spectrum ---------------------------------------------------------------------------------------------------------

  function drawSpectrum(members) {
    const log = state.axis === "log";
    const kind = log ? "log" : "linear";
    const extents = members.map((item) => (log ? item.log_extent : state.axis === "bulk" ? item.bulk : item.extent));
    const floor = least(members.map((item) => item.floor));
    const peak = most(members.map((item) => item.peak[kind] ?? 0));
    const xRange = members.length ? padded(least(extents.map((e) => e[0])), most(extents.map((e) => e[1])), 0.04) : [0, 1];
    const yRange = members.length ? [Math.log10(floor / 3), Math.log10(3 * Math.max(peak, 10 * floor))] : [-1, 1];
    // Areas first, so that no area hides a point of another spectrum.
    const traces = [0, 1, 2].flatMap((layer) =>
      members.map((item, index) => ({ ...item[kind][layer], legendrank: 10 * index + layer })),
    );
    const unit = log ? "per decade" : "per unit of λ";
    Plotly.react(
      element("spectrum"),
      traces,
      layout({
        xaxis: axis(log ? "|λ|  (loss per squared parameter)" : "eigenvalue λ  (loss per squared parameter)", {
          type: log ? "log" : "linear",
          range: xRange,
          ...(log ? { dtick: decades(xRange) } : {}),
        }),
        yaxis: axis(`bulk: share of eigenvalues ${unit}<br>points: resolved eigenvalues, 1/p each`, {
          type: "log",
          range: yRange,
          dtick: decades(yRange),
        }),
        annotations: members.length ? [] : [message("Nothing is chosen: choose a matrix and a split.")],
      }),
      CONFIG,
    );
  }

  const message = (text) => ({ text, xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, font: { size: 16 } });

  const PITCH = 15; // px between neighbouring labels
  const REACH = 48; // px; further from its point a label would not be read as its own

  // Isotonic regression by pooling adjacent violators: positions at least PITCH apart, nearest to the targets.
  function spread(targets, low, high) {
    const pools = [];
    targets.forEach((target, index) => {
      let [mean, count] = [target - index * PITCH, 1];
      while (pools.length && pools[pools.length - 1][0] >= mean) {
        const [earlier, size] = pools.pop();
        [mean, count] = [(earlier * size + mean * count) / (size + count), size + count];
      }
      pools.push([mean, count]);
    });
    const level = pools.flatMap(([mean, count]) => Array(count).fill(mean));
    const top = high - (targets.length - 1) * PITCH;
    return level.map((value, index) => Math.min(Math.max(value, low), top) + index * PITCH);
  }

  function placed(points, low, high) {
    let kept = [...points].sort((a, b) => a.px - b.px);
    while (kept.length) {
      if ((kept.length - 1) * PITCH <= high - low) {
        const positions = spread(kept.map((point) => point.px), low, high);
        const shifts = positions.map((position, index) => position - kept[index].px);
        if (most(shifts.map(Math.abs)) <= REACH) return kept.map((point, index) => ({ ...point, shift: shifts[index] }));
      }
      const smallest = kept.reduce((a, b) => (Math.abs(b.x) < Math.abs(a.x) ? b : a));
      kept = kept.filter((point) => point !== smallest);
    }
    return [];
  }

  let labelled = "";

  // Labels depend on where points are on the screen, so they are placed anew after every zoom and resize.
  function labelOutliers() {
    const figure = element("spectrum");
    const members = selected();
    if (!members.length) return;
    const log = state.axis === "log";
    const range = figure.layout.xaxis.range.map(Number);
    const width = figure._fullLayout._size.w;
    const key = JSON.stringify([state.run, state.checkpoint, [...state.matrices], [...state.splits], log, range, width]);
    if (key === labelled) return;
    labelled = key;
    const pixel = (value) => ((value - range[0]) / (range[1] - range[0])) * width;
    const place = (x) => (log ? Math.log10(Math.abs(x)) : x);
    const points = members
      .flatMap((item) => item.outliers.map((outlier) => ({ ...outlier, at: place(outlier.x) })))
      .map((point) => ({ ...point, px: pixel(point.at) }))
      .filter((point) => point.px >= 0 && point.px <= width);
    const edges = members.flatMap((item) => item.bulk).filter((edge) => !log || edge !== 0);
    const right = most(edges.map((edge) => pixel(place(edge))));
    const left = log ? -Infinity : least(edges.map((edge) => pixel(place(edge))));
    const beyond = points.filter((point) => log || point.x > 0);
    const before = points.filter((point) => !log && point.x < 0);
    const labels = [
      ...placed(beyond, Math.max(right, 0) + PITCH, width - PITCH / 2),
      ...placed(before, PITCH / 2, Math.min(left, width) - PITCH),
    ];
    Plotly.relayout(figure, {
      annotations: labels.map((label) => ({
        x: label.at,
        y: Math.log10(label.y),
        text: label.text,
        textangle: -90,
        ax: label.shift,
        ay: -24 - 3.8 * label.text.length,
        xanchor: "center",
        yanchor: "middle",
        showarrow: true,
        arrowhead: 0,
        arrowwidth: 0.8,
        arrowcolor: label.colour,
        standoff: 6,
        bgcolor: "rgba(255,255,255,0.7)",
        borderpad: 0,
        font: { size: 13, color: label.colour },
        captureevents: false,
      })),
    });
  }

  // Through training -------------------------------------------------------------------------------------------------

  function drawDynamics() {
    const figure = element("dynamics");
    if (!figure) return;
    const items = data.dynamics.filter(isChosen);
    figure.closest("section").hidden = !data.dynamics.some((item) => item.run === state.run);
    const kind = state.axis === "log" ? "log" : "linear";
    const layers = Math.max(...items.map((item) => item[kind].length), 0);
    const traces = [...Array(layers).keys()].flatMap((layer) =>
      // An area lies between two lines that follow one another, so a spectrum's lines stay together.
      layer === layers - 1 ? items.map((item) => item[kind][layer]) : layer === 0 ? items.flatMap((item) => item[kind].slice(0, -1)) : [],
    );
    const edges = items.flatMap((item) => item.linear.slice(0, 2).flatMap((trace) => trace.y)).filter((y) => y !== null);
    const epoch = items.length > 0 && items[0].x_axis === "epoch";
    Plotly.react(
      figure,
      traces,
      layout({
        xaxis: axis(epoch ? "epoch" : "checkpoint", epoch ? { type: "linear" } : { type: "category", automargin: true }),
        yaxis: axis(kind === "log" ? "|λ|  (loss per squared parameter)" : "eigenvalue λ  (loss per squared parameter)", {
          type: kind,
          ...(state.axis === "bulk" && edges.length ? { range: padded(least(edges), most(edges), 0.1) } : {}),
          ...(kind === "linear" ? { zeroline: true, zerolinecolor: "#5a626b" } : {}),
        }),
        annotations: items.length ? [] : [message("Nothing is chosen that was measured at several checkpoints.")],
      }),
      CONFIG,
    );
    figure.setAttribute("aria-label", `Outliers and bulk edges of ${items.map((item) => named([item.matrix, item.split])).join("; ")} at the checkpoints`);
  }

  // Training ---------------------------------------------------------------------------------------------------------

  function drawTraining() {
    const figure = element("training");
    if (!figure) return;
    const item = data.training.find((entry) => entry.run === state.run) ?? (data.runs.length === 1 ? data.training[0] : undefined);
    figure.closest("section").hidden = item === undefined;
    if (item === undefined) return;
    const losses = item.traces.filter((trace) => trace.yaxis === "y").flatMap((trace) => trace.y);
    const positive = losses.every((loss) => loss === null || loss > 0);
    const lines = item.rates.flatMap(({ x }) =>
      ["x", "x2"].map((name) => ({
        type: "line", xref: name, yref: "paper", x0: x, x1: x, y0: 0, y1: 1, layer: "below",
        line: { color: "#8a929a", width: 1, dash: "dot" },
      })),
    );
    Plotly.react(
      figure,
      item.traces,
      layout({
        xaxis: axis("epoch", { domain: [0, 0.46] }),
        xaxis2: axis("epoch", { domain: [0.56, 1], anchor: "y2" }),
        yaxis: axis("mean loss", { type: positive ? "log" : "linear" }),
        yaxis2: axis("error", { anchor: "x2", tickformat: ".3~%", rangemode: "tozero" }),
        shapes: lines,
      }),
      CONFIG,
    );
    element("training-caption").textContent = item.rates.length
      ? `Dotted lines: the learning rate changes, to ${item.rates.map((rate) => `${rate.text} after epoch ${rate.x}`).join(", ")}.`
      : "";
  }

  // Class structure --------------------------------------------------------------------------------------------------

  function drawGrid(grid, figures) {
    for (const { title, traces, layout: own } of figures) {
      const cell = document.createElement("div");
      const heading = document.createElement("h3");
      const figure = document.createElement("div");
      heading.innerHTML = title;
      figure.className = "figure";
      figure.setAttribute("role", "figure");
      figure.setAttribute("aria-label", heading.textContent);
      cell.append(heading, figure);
      grid.append(cell);
      // Of the digits between decades 2 and 5 only: Plotly's own choice writes 9 over 10 in a figure this small.
      const styled = ({ title, ...rest } = {}) =>
        axis(title?.text ?? "", { ...(rest.type === "log" ? { dtick: "D2" } : {}), ...rest });
      Plotly.newPlot(
        figure,
        traces,
        layout({ margin: { l: 84, r: 16, t: 12, b: 56 }, ...own, xaxis: styled(own.xaxis), yaxis: styled(own.yaxis) }),
        CONFIG,
      );
    }
  }

  // A figure has a size only where it is shown: those of a closed part are drawn when it is opened.
  function drawStructures() {
    const over = element("structures-over");
    if (!over) return;
    drawGrid(over, data.structures_over);
    for (const part of document.querySelectorAll("[data-structure]")) {
      const fill = () => {
        const grid = part.querySelector(".grid");
        if (part.open && !grid.childElementCount) drawGrid(grid, data.structures[Number(part.dataset.structure)]);
      };
      part.addEventListener("toggle", fill);
      fill();
    }
  }

  // All --------------------------------------------------------------------------------------------------------------

  function draw() {
    const members = selected();
    const counts = members.map((item) => `${named([item.matrix, item.split]) || "spectrum"}: ${item.count || "no"} outlier${item.count === 1 ? "" : "s"}`);
    const words = members.length ? `Shown${state.checkpoint ? ` at ${state.checkpoint}` : ""}: ${counts.join("; ")}.` : "Nothing is shown.";
    element("status").textContent = words;
    element("spectrum").setAttribute("aria-label", `Spectrum. ${words}`);
    for (const part of document.querySelectorAll("[data-spectrum]")) {
      part.hidden = !members.includes(data.spectra[Number(part.dataset.spectrum)]);
    }
    labelled = "";
    drawSpectrum(members);
    drawDynamics();
    drawTraining();
  }

  fillControls();
  draw();
  drawStructures();
  element("spectrum").on("plotly_afterplot", labelOutliers);
  labelOutliers();

  // Figures as wide as a sheet of A4 between its margins.
  const figures = () => [...document.querySelectorAll(".js-plotly-plot")];
  addEventListener("beforeprint", () => {
    for (const figure of figures()) Plotly.relayout(figure, { autosize: false, width: 690, height: 380 });
  });
  addEventListener("afterprint", () => {
    for (const figure of figures()) Plotly.relayout(figure, { autosize: true, width: null, height: null });
  });
})();
