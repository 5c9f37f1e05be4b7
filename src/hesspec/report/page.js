"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const named = (parts) => parts.filter((part) => part !== "").join(", ");

  // Plotly reads HTML tags and, as of a template, `%{...}` in its texts.
  const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  const plain = (text) => text.replace(/[&<>]/g, (c) => ESCAPES[c]).replaceAll("%{", "&#37;{");
  const distinct = (values) => [...new Set(values)];

  const state = {
    run: data.first.run,
    n: data.first.n,
    checkpoint: data.first.checkpoint,
    matrices: new Set(data.matrices.map((matrix) => matrix.name)),
    splits: new Set([data.first.split]),
    axis: "linear",
    fixed: false,
  };

  const matrixNames = data.matrices.map((matrix) => matrix.name);
  const lookOf = (item) => data.looks[matrixNames.indexOf(item.matrix)][data.splits.indexOf(item.split)];
  const nameOf = (item) => named([item.matrix, item.split]);
  const runNow = () => data.runs.find((run) => run.name === state.run);
  const inStudy = () => runNow().sizes.length > 0;
  const sizeWords = (n) => (n === null ? "" : `n = ${n}`);

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
    stop();
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
        draw();
      });
    }
  }

  function fillControls() {
    element("controls").addEventListener("submit", (event) => event.preventDefault());
    const run = element("run");
    for (const { name } of data.runs) run.add(new Option(name, name, false, name === state.run));
    run.addEventListener("change", () => {
      state.run = run.value;
      fillCheckpoints();
      draw();
    });
    element("run-control").hidden = data.runs.length < 2;
    fillCheckpoints();
    for (const name of Object.keys(SLIDERS)) {
      element(`${name}-slider`).addEventListener("input", (event) => {
        stop();
        place(name, Number(event.target.value));
        soon();
      });
      element(`${name}-play`).addEventListener("click", () => play(name));
    }
    element("fixed").addEventListener("change", (event) => {
      state.fixed = event.target.checked;
      draw();
    });
    const labels = addSet(element("matrices"), matrixNames, state.matrices);
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
  const atSize = (item) => item.n === state.n;
  const isHere = (item) => isChosen(item) && atSize(item) && item.checkpoint === state.checkpoint;
  const selected = () => data.spectra.filter(isHere);
  // What is chosen and was measured somewhere in the run, but not here.
  const missing = (members) =>
    runNow()
      .measured.filter(([matrix, split]) => isChosen({ run: state.run, matrix, split }))
      .filter(([matrix, split]) => !members.some((item) => item.matrix === matrix && item.split === split))
      .map(named);
  const here = () => [inStudy() ? sizeWords(state.n) : "", state.checkpoint].filter((part) => part !== "").join(", ");

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

  const legendGroup = (item) => `${item.matrix}/${item.split}`;

  function hoverOf(item, index) {
    const [value, bound] = item.texts[index];
    const rank = item.ranks[index];
    const track = rank && item.tracks ? item.tracks[rank - 1] : -1;
    return [
      `<b>λ = ${value}</b>`,
      `error at most ${bound}`,
      rank ? `outlier ${rank} of ${item.count}` : "resolved, in the bulk",
      ...(track >= 0 ? [`eigenvector ${track + 1} of this training`] : []),
      `matrix: ${plain(item.matrix)}`,
      ...(item.split ? [`split: ${plain(item.split)}`] : []),
      ...(item.n === null ? [] : [`n = ${item.n}`]),
      ...(item.checkpoint ? [item.n === null ? `checkpoint: ${plain(item.checkpoint)}` : plain(item.checkpoint)] : []),
      ...(item.run ? [plain(item.run)] : []),
    ].join("<br>");
  }

  function bulkTrace(item, log) {
    const look = lookOf(item);
    const [x, y] = log ? item.log : item.linear;
    return {
      type: "scatter", mode: "lines", name: plain(nameOf(item)), legendgroup: legendGroup(item),
      x, y, fill: "tozeroy", fillcolor: look.area, line: look.line,
      meta: [`bulk of ${plain(item.title)}`],
      hovertemplate: `%{meta[0]}<br>λ = %{x:.3g}<br>share of eigenvalues ${log ? "per decade" : "per unit of λ"}: %{y:.3g}<extra></extra>`,
    };
  }

  function pointsTrace(item, log, outliers) {
    const look = lookOf(item);
    const kept = item.values.map((_, index) => index).filter((i) => (item.ranks[i] > 0) === outliers && (!log || item.values[i] !== 0));
    const open = (i) => log && item.values[i] < 0;
    return {
      type: "scatter", mode: "markers", legendgroup: legendGroup(item),
      x: kept.map((i) => (log ? Math.abs(item.values[i]) : item.values[i])),
      y: kept.map((i) => item.heights?.[i] ?? item.floor),
      hoverinfo: "text",
      hovertext: kept.map((i) => hoverOf(item, i)),
      ...(outliers
        ? {
            name: `${item.count} outlier${item.count === 1 ? "" : "s"}`,
            showlegend: item.count > 0,
            error_x: { type: "data", array: kept.map((i) => item.bounds[i]), color: look.dark, thickness: 1.4, width: 4 },
          }
        : { name: "resolved eigenvalue in the bulk", showlegend: false }),
      marker: {
        symbol: kept.map((i) => look.symbol + (open(i) ? "-open" : "")),
        size: outliers ? look.size : 5,
        color: outliers ? look.dark : look.light,
        line: outliers ? { color: kept.map((i) => (open(i) ? look.dark : "#ffffff")), width: 1 } : { width: 0 },
      },
    };
  }

  function tailTrace(item) {
    const { x, y, exponent, verdict, fits } = item.tail;
    return {
      type: "scatter", mode: "lines", legendgroup: legendGroup(item), x, y,
      name: `tail |λ|<sup>−a</sup>, a = ${exponent}`,
      line: { color: lookOf(item).dark, width: 2.6, dash: fits ? "solid" : "dash" },
      hoverinfo: "text",
      hovertext: x.map(() =>
        [`<b>tail of ${plain(nameOf(item))}: density ∝ |λ|<sup>−a</sup></b>`, `a = ${exponent}, 95% interval`, verdict].join("<br>"),
      ),
    };
  }

  function lawTrace(item) {
    const { x, y, text } = item.law;
    return {
      type: "scatter", mode: "lines", legendgroup: legendGroup(item), x, y, name: "Marchenko–Pastur law",
      line: { color: "#5a626b", width: 2, dash: "dashdot" }, hoverinfo: "text",
      hovertext: x.map(() => `<b>Marchenko–Pastur law of ${plain(nameOf(item))}</b><br>${plain(text)}`),
    };
  }

  // With axes held, they have room for all sample sizes and checkpoints of the run.
  const held = (members) => (state.fixed && inStudy() ? data.spectra.filter(isChosen) : members);

  function drawSpectrum(members) {
    const log = state.axis === "log";
    const kind = log ? "log" : "linear";
    const ruling = held(members);
    const extents = ruling.map((item) => (log ? item.log_extent : state.axis === "bulk" ? item.bulk : item.extent));
    const floor = least(ruling.map((item) => item.floor));
    const peak = most(ruling.map((item) => item.peak[kind] ?? 0));
    const xRange = ruling.length ? padded(least(extents.map((e) => e[0])), most(extents.map((e) => e[1])), 0.04) : [0, 1];
    const yRange = ruling.length ? [Math.log10(floor / 3), Math.log10(3 * Math.max(peak, 10 * floor))] : [-1, 1];
    // Areas first, so that no area hides a point of another spectrum.
    const layers = [
      members.map((item) => bulkTrace(item, log)),
      ...(log ? [members.filter((item) => item.law).map(lawTrace), members.filter((item) => item.tail).map(tailTrace)] : []),
      members.map((item) => pointsTrace(item, log, false)),
      members.map((item) => pointsTrace(item, log, true)),
    ];
    const order = (trace) => members.findIndex((item) => legendGroup(item) === trace.legendgroup);
    const traces = layers.flatMap((layer, depth) => layer.map((trace) => ({ ...trace, legendrank: 10 * order(trace) + depth })));
    const unit = log ? "per decade" : "per unit of λ";
    const nothing = state.matrices.size && state.splits.size ? `Not measured yet at ${plain(here())}.` : "Nothing is chosen: choose a matrix and a split.";
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
        annotations: members.length ? [] : [message(nothing)],
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

  function outliersOf(item) {
    const colour = lookOf(item).dark;
    return item.ranks
      .map((rank, i) => ({ x: item.values[i], y: item.heights?.[i] ?? item.floor, text: item.labels[rank - 1], colour, rank }))
      .filter(({ rank }) => rank > 0);
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
    const key = JSON.stringify([state.run, state.n, state.checkpoint, [...state.matrices], [...state.splits], log, range, width]);
    if (key === labelled) return;
    labelled = key;
    const pixel = (value) => ((value - range[0]) / (range[1] - range[0])) * width;
    const at = (x) => (log ? Math.log10(Math.abs(x)) : x);
    const points = members
      .flatMap((item) => outliersOf(item).map((outlier) => ({ ...outlier, at: at(outlier.x) })))
      .map((point) => ({ ...point, px: pixel(point.at) }))
      .filter((point) => point.px >= 0 && point.px <= width);
    const edges = members.flatMap((item) => item.bulk).filter((edge) => !log || edge !== 0);
    const right = most(edges.map((edge) => pixel(at(edge))));
    const left = log ? -Infinity : least(edges.map((edge) => pixel(at(edge))));
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

  // Outliers and bulk edges across spectra ---------------------------------------------------------------------------

  // Chosen spectra by matrix and split, each in the order of the x axis.
  function series(keep) {
    const found = new Map();
    for (const item of data.spectra.filter((item) => isChosen(item) && keep(item))) {
      const key = JSON.stringify([item.matrix, item.split]);
      found.set(key, [...(found.get(key) ?? []), item]);
    }
    return [...found.values()];
  }

  const LINE = { type: "scatter", mode: "lines", hoverinfo: "text" };
  const digits = (value) => (value === null ? "none" : Number(value.toPrecision(3)).toString().replace("-", "−"));
  const described = (side, items, values) => items.map((item, i) => `${side} of ${plain(item.title)}: ${digits(values[i])}`);

  function edgeTraces(items, x, log) {
    const look = lookOf(items[0]);
    const name = `bulk of ${plain(nameOf(items[0]))}`;
    const line = { ...LINE, legendgroup: legendGroup(items[0]), x, line: look.line };
    const [low, high] = [0, 1].map((side) => items.map((item) => item.edges[side]));
    if (!log) {
      // An area lies between two lines that follow one another.
      return [
        { ...line, y: low, hovertext: described("lower bulk edge", items, low), showlegend: false },
        { ...line, y: high, name, hovertext: described("upper bulk edge", items, high), fill: "tonexty", fillcolor: look.area },
      ];
    }
    const reach = items.map(({ edges: [a, b] }) => (a === null ? null : Math.max(Math.abs(a), Math.abs(b)) || null));
    return [{ ...line, y: reach, name, hovertext: described("reach of the bulk", items, reach), fill: "tozeroy", fillcolor: look.area }];
  }

  // Number by which outliers of several spectra are joined: that of the eigenvector, or the rank among those of a sign.
  function numbersOf(item, tracked) {
    const outliers = item.ranks.flatMap((rank, i) => (rank ? [i] : []));
    if (tracked) return outliers.map((i, k) => [i, item.tracks[k] < 0 ? null : `track ${item.tracks[k]}`]);
    let [above, below] = [0, 0];
    return outliers.map((i) => [i, item.values[i] > 0 ? `+${(above += 1)}` : `-${(below += 1)}`]);
  }

  // All outliers as one trace with gaps: where there is none of a number, no line leaps over the place.
  function outlierTrace(items, x, log, tracked) {
    const look = lookOf(items[0]);
    const lines = new Map();
    items.forEach((item, place) => {
      for (const [i, number] of numbersOf(item, tracked)) {
        const key = number ?? `alone ${place} ${i}`;
        if (!lines.has(key)) lines.set(key, new Map());
        lines.get(key).set(place, i);
      }
    });
    const points = [...lines.values()].flatMap((line) => [
      ...items.map((item, place) => {
        const i = line.get(place);
        if (i === undefined) return { x: x[place], y: null, bound: null, text: "", open: false };
        const value = item.values[i];
        return { x: x[place], y: log ? Math.abs(value) : value, bound: item.bounds[i], text: hoverOf(item, i), open: log && value < 0 };
      }),
      { x: x[x.length - 1], y: null, bound: null, text: "", open: false },
    ]);
    return {
      type: "scatter", mode: "lines+markers",
      name: `outliers of ${plain(nameOf(items[0]))}`,
      showlegend: points.length > 0 && innerWidth > 700, // a narrow window has no room for both
      legendgroup: legendGroup(items[0]),
      x: points.map((point) => point.x),
      y: points.map((point) => point.y),
      connectgaps: false,
      hoverinfo: "text",
      hovertext: points.map((point) => point.text),
      line: { color: look.light, width: 0.8 },
      marker: {
        symbol: points.map((point) => look.symbol + (point.open ? "-open" : "")),
        size: look.size - 1,
        color: look.dark,
        line: { color: points.map((point) => (point.open ? look.dark : "#ffffff")), width: 1 },
      },
      error_y: { type: "data", array: points.map((point) => point.bound), color: look.dark, thickness: 1.4, width: 3 },
    };
  }

  // Where the sliders are.
  const cursor = (x) => ({
    type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, layer: "below",
    line: { color: "#8a929a", width: 1, dash: "dot" },
  });

  function drawDynamics() {
    const figure = element("dynamics");
    if (!figure) return;
    const all = data.spectra.filter((item) => item.run === state.run && atSize(item));
    const measured = new Map();
    for (const item of all) measured.set(legendGroup(item), (measured.get(legendGroup(item)) ?? 0) + 1);
    figure.closest("section").hidden = !inStudy() && most([...measured.values()]) < 2;
    const groups = series(atSize).filter((items) => items.length > 1);
    const items = groups.flat();
    const epochs = items.length > 0 && groups.every((group) => group.every((item) => item.epoch !== null) && distinct(group.map((item) => item.epoch)).length === group.length);
    const places = (group) => group.map((item) => (epochs ? item.epoch : plain(item.checkpoint)));
    const log = state.axis === "log";
    const tracked = (group) => group.every((item) => item.tracks !== null);
    const traces = [
      ...groups.flatMap((group) => edgeTraces(group, places(group), log)),
      ...groups.map((group) => outlierTrace(group, places(group), log, tracked(group))),
    ];
    const edges = (state.fixed && inStudy() ? data.spectra.filter(isChosen) : items).flatMap((item) => item.edges).filter((y) => y !== null);
    const now = items.find((item) => item.checkpoint === state.checkpoint);
    Plotly.react(
      figure,
      traces,
      layout({
        xaxis: axis(epochs ? "epoch" : "checkpoint", epochs ? { type: "linear" } : { type: "category", automargin: true }),
        yaxis: axis(log ? "|λ|  (loss per squared parameter)" : "eigenvalue λ  (loss per squared parameter)", {
          type: log ? "log" : "linear",
          ...(state.axis === "bulk" && edges.length ? { range: padded(least(edges), most(edges), 0.1) } : {}),
          ...(log ? { dtick: "D2" } : { zeroline: true, zerolinecolor: "#5a626b" }),
        }),
        shapes: inStudy() && epochs && now ? [cursor(now.epoch)] : [],
        annotations: items.length ? [] : [message(inStudy() ? `Not measured yet at several epochs for n = ${state.n}.` : "Nothing is chosen that was measured at several checkpoints.")],
      }),
      CONFIG,
    );
    element("dynamics-joined").textContent = groups.length && groups.every(tracked) ? "those of one eigenvector joined" : "those of one rank joined";
    element("dynamics-place").textContent = inStudy() ? `, n = ${state.n}` : "";
    figure.setAttribute("aria-label", `Outliers and bulk edges of ${groups.map((group) => nameOf(group[0])).join("; ")} at the checkpoints`);
  }

  function drawSamples() {
    const figure = element("samples");
    if (!figure) return;
    figure.closest("section").hidden = runNow().sizes.length < 2;
    if (runNow().sizes.length < 2) return;
    const groups = series((item) => item.checkpoint === state.checkpoint);
    const laws = data.laws.filter((law) => isChosen(law) && law.checkpoint === state.checkpoint);
    // Of an exponent of which not even the sign is known there is nothing to see, and lines of all outliers hide the points.
    const drawn = { "outlier 1": "dash", "upper bulk edge": "dashdot", "lower bulk edge": "longdashdot" };
    const known = laws.filter((law) => law.known && law.what in drawn);
    const sizes = (group) => group.map((item) => item.n);
    const lower = (group) => {
      const edges = group.map((item) => (item.edges[0] < 0 ? -item.edges[0] : null));
      const look = lookOf(group[0]);
      return {
        ...LINE, legendgroup: legendGroup(group[0]), x: sizes(group), y: edges, showlegend: false,
        line: { color: look.light, width: 1, dash: "dot" },
        hovertext: described("lower bulk edge, |λ|,", group, edges),
      };
    };
    const upper = (group) => {
      const edges = group.map((item) => (item.edges[1] > 0 ? item.edges[1] : null));
      const look = lookOf(group[0]);
      return {
        ...LINE, legendgroup: legendGroup(group[0]), x: sizes(group), y: edges, line: look.line,
        name: `bulk of ${plain(nameOf(group[0]))}`, fill: "tozeroy", fillcolor: look.area,
        hovertext: described("upper bulk edge", group, edges),
      };
    };
    const fitted = (law) => ({
      ...LINE, legendgroup: legendGroup(law), x: law.x, y: law.y, showlegend: false,
      line: { color: lookOf(law).dark, width: 1.6, dash: drawn[law.what] },
      hovertext: law.x.map(() => `${law.what} of ${plain(nameOf(law))} ∝ n<sup>a</sup><br>a = ${law.exponent}, 95% interval<br>${law.points} sample sizes, R² = ${law.r_squared}`),
    });
    const all = runNow().sizes;
    Plotly.react(
      figure,
      [
        ...groups.map(upper),
        ...groups.filter((group) => group.some((item) => item.edges[0] < 0)).map(lower),
        ...known.map(fitted),
        ...groups.map((group) => outlierTrace(group, sizes(group), true, false)),
      ],
      layout({
        xaxis: axis("training samples per class (n)", {
          type: "log",
          range: padded(Math.log10(all[0]), Math.log10(all[all.length - 1]), 0.05),
          ...(all.length <= 24 ? { tickvals: all, ticktext: all.map(String) } : {}),
        }),
        yaxis: axis("|λ|  (loss per squared parameter)", { type: "log", dtick: "D2" }),
        shapes: [cursor(state.n)],
        annotations: groups.length ? [] : [message("Nothing is chosen that was measured here.")],
      }),
      CONFIG,
    );
    element("samples-place").textContent = `, ${state.checkpoint}`;
    figure.setAttribute("aria-label", `Outliers and bulk edges of ${groups.map((group) => nameOf(group[0])).join("; ")} against sample size`);
    if (element("laws")) {
      fillTable(element("laws"), laws.map((law) => [nameOf(law), law.what, law.exponent, law.r_squared, `${law.points}`]), "no power law is shown: it takes five sample sizes with the same number of outliers, and an exponent known to ±1");
    }
  }

  function drawPairs() {
    const figure = element("pairs");
    if (!figure) return;
    const known = data.pairs.map((pair) => ({ ...pair, hess: data.spectra[pair.hess], g: data.spectra[pair.g] })).filter(({ hess }) => hess.run === state.run);
    figure.closest("section").hidden = known.length === 0;
    if (!known.length) return;
    const pairs = known.filter(({ hess }) => atSize(hess) && hess.checkpoint === state.checkpoint && state.splits.has(hess.split));
    const positive = (item) => item.ranks.flatMap((rank, i) => (rank && item.values[i] > 0 ? [i] : []));
    const every = [];
    const traces = pairs.map(({ hess, g, overlaps }) => {
      const [left, right] = [positive(hess), positive(g)];
      const ranks = [...Array(Math.min(left.length, right.length)).keys()];
      const look = lookOf(hess);
      const x = ranks.map((k) => g.values[right[k]]);
      const y = ranks.map((k) => hess.values[left[k]]);
      every.push(...x, ...y);
      const alone = [[left.length, "Hess"], [right.length, "G"]].filter(([count]) => count > ranks.length);
      return {
        type: "scatter", mode: "markers", x, y,
        name: plain([hess.split, `${ranks.length} pairs`, ...alone.map(([count, name]) => `${count - ranks.length} more of ${name}`)].filter((part) => part).join(", ")),
        hoverinfo: "text",
        hovertext: ranks.map((k) => {
          const [a, b] = [hess.texts[left[k]], g.texts[right[k]]];
          const difference = 100 * (y[k] / x[k] - 1);
          const row = overlaps?.[hess.ranks[left[k]] - 1];
          const best = row ? most(row.map((part) => part ?? -1)) : -1;
          return [
            `<b>outlier ${k + 1}: Hess ${a[0]} ± ${a[1]}</b>`,
            `G ${b[0]} ± ${b[1]}`,
            `Hess is ${Math.abs(difference).toPrecision(2)}% ${difference < 0 ? "smaller" : "larger"}`,
            ...(best >= 0 ? [`eigenvector: squared overlap ${best.toFixed(2)} with that of outlier ${row.indexOf(best) + 1} of G`] : []),
            plain(named([hess.split, sizeWords(hess.n), hess.checkpoint])),
          ].join("<br>");
        }),
        marker: { symbol: look.symbol, color: look.dark, size: 10, line: { color: "#ffffff", width: 1 } },
        error_x: { type: "data", array: ranks.map((k) => g.bounds[right[k]]), color: look.dark, thickness: 1.2, width: 3 },
        error_y: { type: "data", array: ranks.map((k) => hess.bounds[left[k]]), color: look.dark, thickness: 1.2, width: 3 },
      };
    });
    const ends = every.length ? [least(every) / 1.3, most(every) * 1.3] : [0.1, 10];
    const equal = { type: "scatter", mode: "lines", x: ends, y: ends, name: "equal", hoverinfo: "skip", line: { color: "#5a626b", width: 1, dash: "dash" } };
    const range = ends.map(Math.log10);
    const words = pairs.length ? "No outliers in both." : `Not measured yet at ${plain(here())}.`;
    Plotly.react(
      figure,
      [equal, ...traces],
      layout({
        xaxis: axis("outliers of G", { type: "log", range, dtick: "D2" }),
        yaxis: axis("outliers of Hess, of the same rank", { type: "log", range, dtick: "D2" }),
        annotations: every.length ? [] : [message(state.splits.size ? words : "Nothing is chosen: choose a split.")],
      }),
      CONFIG,
    );
    figure.setAttribute("aria-label", `Outliers of Hess against outliers of G at ${here()}`);
    element("pairs-place").textContent = here() ? `, ${here()}` : "";
    const shown = pairs.find(({ overlaps }) => overlaps && overlaps[0].length);
    const map = element("overlaps");
    map.closest(".cell").hidden = shown === undefined;
    if (shown === undefined) return;
    element("overlaps-title").textContent = `Squared overlaps of eigenvectors${shown.hess.split ? `, ${shown.hess.split}` : ""}`;
    const ranks = (count) => [...Array(count).keys()].map((k) => k + 1);
    Plotly.react(
      map,
      [
        {
          type: "heatmap", z: shown.overlaps, x: ranks(shown.overlaps[0].length), y: ranks(shown.overlaps.length),
          zmin: 0, zmax: 1, xgap: 1, ygap: 1,
          colorscale: [[0, "#f5f7f8"], [1, "#004569"]],
          colorbar: { thickness: 12, outlinewidth: 0, tickformat: ".1f" },
          hovertemplate: "outlier %{y} of Hess, %{x} of G<br>squared overlap %{z:.3f}<extra></extra>",
        },
      ],
      layout({
        xaxis: axis("outlier of G", { dtick: Math.ceil(shown.overlaps[0].length / 12), showgrid: false }),
        yaxis: axis("outlier of Hess", { autorange: "reversed", dtick: Math.ceil(shown.overlaps.length / 12), showgrid: false }),
      }),
      CONFIG,
    );
  }

  // Training ---------------------------------------------------------------------------------------------------------

  function drawTraining() {
    const figure = element("training");
    if (!figure) return;
    const mine = data.training.filter((entry) => entry.run === state.run);
    const item = mine.find(atSize) ?? (data.runs.length === 1 && !inStudy() ? data.training[0] : undefined);
    figure.closest("section").hidden = item === undefined && !mine.length;
    element("training-place").textContent = inStudy() ? `, n = ${state.n}` : "";
    if (item === undefined) {
      Plotly.react(figure, [], layout({ annotations: [message("There is no record of this training yet.")] }), CONFIG);
      element("training-caption").textContent = "";
      return;
    }
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

  // Tables -----------------------------------------------------------------------------------------------------------

  function addCells(row, texts, numbersFrom) {
    texts.forEach((text, index) => {
      const cell = document.createElement(index < numbersFrom ? "th" : "td");
      if (index < numbersFrom) cell.scope = "row";
      else cell.className = "number";
      cell.textContent = text;
      row.append(cell);
    });
    return row;
  }

  function fillTable(table, rows, otherwise) {
    const body = table.tBodies[0];
    body.replaceChildren(...rows.map((texts) => addCells(document.createElement("tr"), texts, 1)));
    if (!rows.length) body.insertRow().insertCell().textContent = otherwise;
    if (!rows.length) body.rows[0].cells[0].colSpan = table.tHead.rows[0].cells.length;
  }

  function outlierTable(item) {
    const table = element("outlier-table").content.firstElementChild.cloneNode(true);
    table.caption.firstElementChild.textContent = item.title;
    table.caption.lastElementChild.textContent = item.run;
    const rows = item.texts.filter((_, i) => item.ranks[i]).map(([value, bound], k) => [`${k + 1}`, value, bound]);
    fillTable(table, rows, "no outliers");
    return table;
  }

  function fillTables(members) {
    element("outlier-tables").replaceChildren(...members.map(outlierTable));
    fillTable(element("glance"), members.map((item) => [item.title, ...item.glance]), "nothing is shown");
  }

  // What the figures draw is written as a table here: a text of its own would double what the page holds of it.
  const CURVES = [["linear", "per unit of eigenvalue"], ["log", "per decade of magnitude"]];
  const TABLES = {
    "density.csv": () => [
      [...data.columns, "axis", "abscissa", "density", "unit"],
      ...data.spectra.flatMap((item) =>
        CURVES.flatMap(([kind, unit]) => item[kind][0].map((x, i) => [...item.place, kind, x, item[kind][1][i], unit])),
      ),
    ],
    "resolved.csv": () => [
      [...data.columns, "eigenvalue", "error_bound", "weight", "outlier_rank"],
      ...data.spectra.flatMap((item) =>
        item.values.map((value, i) => [...item.place, value, item.bounds[i], item.heights?.[i] ?? item.floor, item.ranks[i] || null]),
      ),
    ],
    "overlaps.csv": () => [
      [...data.columns.map((name) => (name === "file" ? "hess_file" : name)), "g_file", "hess_outlier", "g_outlier", "squared_overlap"],
      ...data.pairs.flatMap(({ hess, g, overlaps }) =>
        (overlaps ?? []).flatMap((row, i) =>
          row.map((part, j) => [...data.spectra[hess].place, data.spectra[g].place.at(-1), i + 1, j + 1, part]),
        ),
      ),
    ],
  };
  // A text that a spreadsheet would run as a formula is marked as a text by an apostrophe.
  const isNumber = (text) => text.trim() !== "" && !Number.isNaN(Number(text));
  const runs = (text) => /^[\t\r\n]/.test(text) || (/^\s*[=+\-@＝＋－＠]/.test(text) && !isNumber(text));
  const harmless = (value) => (typeof value === "string" && runs(value) ? `'${value}` : `${value ?? ""}`);
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const cellText = (value) => quoted(harmless(value));
  const written = (rows) => rows.map((row) => `${row.map(cellText).join(",")}\r\n`).join("");

  // Files are made when they are asked for: an address that holds a large one would not be followed.
  for (const link of document.querySelectorAll("[data-file]")) {
    const name = link.dataset.file;
    if (!(name in data.files || name in TABLES)) {
      link.hidden = true;
      continue;
    }
    Object.assign(link, { download: name, href: "#" });
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const text = data.files[name] ?? written(TABLES[name]());
      const address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
      const anchor = Object.assign(document.createElement("a"), { href: address, download: name });
      anchor.click();
      setTimeout(() => URL.revokeObjectURL(address), 10000);
    });
  }

  // All --------------------------------------------------------------------------------------------------------------

  // Figures that do not depend on what has changed are left alone.
  const drawnFor = {};
  function once(name, key, make) {
    const now = JSON.stringify(key);
    if (drawnFor[name] === now) return;
    drawnFor[name] = now;
    make();
  }

  function draw() {
    if (data.spectra.length) drawSelected();
    once("training", [state.run, state.n], drawTraining);
  }

  function drawSelected() {
    const members = selected();
    const absent = missing(members);
    const counts = members.map((item) => `${nameOf(item) || "spectrum"}: ${item.count || "no"} outlier${item.count === 1 ? "" : "s"}`);
    const shown = members.length ? `Shown${here() ? ` at ${here()}` : ""}: ${counts.join("; ")}.` : "Nothing is shown.";
    const words = absent.length && inStudy() ? `${shown} Not measured yet${members.length ? "" : ` at ${here()}`}: ${absent.join("; ")}.` : shown;
    element("status").textContent = words;
    element("spectrum").setAttribute("aria-label", `Spectrum. ${words}`);
    const chosen = [state.run, [...state.matrices], [...state.splits]];
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

  fillControls();
  draw();
  drawStructures();
  if (data.spectra.length) {
    element("spectrum").on("plotly_afterplot", labelOutliers);
    labelOutliers();
  }

  // Figures as wide as a sheet of A4 between its margins.
  const figures = () => [...document.querySelectorAll(".js-plotly-plot")];
  addEventListener("beforeprint", () => {
    for (const figure of figures()) Plotly.relayout(figure, { autosize: false, width: 690, height: 380 });
  });
  addEventListener("afterprint", () => {
    for (const figure of figures()) Plotly.relayout(figure, { autosize: true, width: null, height: null });
  });
})();
