// Outliers and bulk edges across spectra ------------------------------------------------------------------------------

// Chosen spectra by matrix and split, each in the order of the x axis.
function series(keep) {
  const found = new Map();
  for (const item of data.spectra.filter((item) => isChosen(item) && keep(item))) {
    const key = legendGroup(item);
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
    showlegend: points.length > 0,
    legendgroup: legendGroup(items[0]),
    x: points.map((point) => point.x),
    y: points.map((point) => point.y),
    connectgaps: false,
    hoverinfo: "text",
    hovertext: points.map((point) => point.text),
    line: { color: look.light, width: 0.8 },
    marker: {
      symbol: points.map((point) => (point.open ? hollow(look.symbol) : look.symbol)),
      size: look.size - 1,
      color: look.dark,
      line: { color: points.map((point) => (point.open ? look.dark : colour("paper"))), width: 1 },
    },
    error_y: { type: "data", array: points.map((point) => point.bound), color: look.dark, thickness: 1.4, width: 3 },
  };
}

// Where the sliders are.
const cursor = (x) => ({
  type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, layer: "below",
  line: { color: colour("soft"), width: 1, dash: "dot" },
});

function drawDynamics() {
  const figure = element("dynamics");
  if (!figure) return;
  const all = data.spectra.filter((item) => runsShown().some((run) => run.name === item.run) && atSize(item));
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
  const nothing = inStudy() ? `Not measured yet at several epochs for n = ${state.n}.` : "Nothing is chosen that was measured at several checkpoints.";
  show(figure, traces, {
    xaxis: epochs ? epochAxis(items.map((item) => item.epoch), {}) : axis("checkpoint", { type: "category", automargin: true }),
    yaxis: axis(log ? MAGNITUDE(items) : EIGENVALUE(items), {
      type: log ? "log" : "linear",
      ...(state.axis === "bulk" && edges.length ? { range: padded(least(edges), most(edges), 0.1) } : {}),
      ...(log ? {} : { zeroline: true }),
    }),
    shapes: inStudy() && epochs && now ? [cursor(now.epoch)] : [],
    annotations: items.length ? [] : [message(nothing)],
  });
  element("dynamics-joined").textContent = groups.length && groups.every(tracked) ? "those of one eigenvector joined" : "those of one rank joined";
  element("dynamics-place").textContent = inStudy() ? `, n = ${state.n}` : "";
  figure.setAttribute("aria-label", `Outliers and bulk edges of ${groups.map((group) => nameOf(group[0])).join("; ")} at the checkpoints`);
}

function drawSamples() {
  const figure = element("samples");
  if (!figure) return;
  figure.closest("section").hidden = runNow().sizes.length < 2;
  if (runNow().sizes.length < 2) return;
  const groups = series(atCheckpoint);
  const laws = data.laws.filter((law) => isChosen(law) && atCheckpoint(law));
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
    hovertext: law.x.map(() => `${law.what} of ${plain(nameOf(law))} ∝ nᵃ<br>a = ${law.exponent}, 95% interval<br>${law.points} sample sizes, R² = ${law.r_squared}`),
  });
  const all = runNow().sizes;
  show(
    figure,
    [
      ...groups.map(upper),
      ...groups.filter((group) => group.some((item) => item.edges[0] < 0)).map(lower),
      ...known.map(fitted),
      ...groups.map((group) => outlierTrace(group, sizes(group), true, false)),
    ],
    {
      xaxis: axis("training samples per class (n)", {
        type: "log",
        range: padded(Math.log10(all[0]), Math.log10(all[all.length - 1]), 0.05),
        ...(all.length <= 24 ? { tickvals: all, ticktext: all.map(String) } : {}),
      }),
      yaxis: axis(MAGNITUDE(groups.flat()), { type: "log" }),
      shapes: [cursor(state.n)],
      annotations: groups.length ? [] : [message("Nothing is chosen that was measured here.")],
    },
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
      marker: { symbol: look.symbol, color: look.dark, size: 10, line: { color: colour("paper"), width: 1 } },
      error_x: { type: "data", array: ranks.map((k) => g.bounds[right[k]]), color: look.dark, thickness: 1.2, width: 3 },
      error_y: { type: "data", array: ranks.map((k) => hess.bounds[left[k]]), color: look.dark, thickness: 1.2, width: 3 },
    };
  });
  const ends = every.length ? [least(every) / 1.3, most(every) * 1.3] : [0.1, 10];
  const equal = { type: "scatter", mode: "lines", x: ends, y: ends, name: "equal", hoverinfo: "skip", line: { color: colour("soft"), width: 1, dash: "dash" } };
  const range = ends.map(Math.log10);
  const words = pairs.length ? "Hess and G have no outliers in common here." : `Not measured yet at ${here()}.`;
  element("pairs-none").textContent = every.length ? "" : state.splits.size ? words : "Nothing is chosen: choose a split.";
  figure.closest(".grid").hidden = !every.length;
  element("pairs-place").textContent = here() ? `, ${here()}` : "";
  if (!every.length) return;
  show(figure, [equal, ...traces], {
    xaxis: axis("outliers of G", { type: "log", range }),
    yaxis: axis("outliers of Hess, of the same rank", { type: "log", range }),
  });
  figure.setAttribute("aria-label", `Outliers of Hess against outliers of G at ${here()}`);
  const shown = pairs.find(({ overlaps }) => overlaps && overlaps[0].length);
  const map = element("overlaps");
  map.closest(".cell").hidden = shown === undefined;
  if (shown === undefined) return;
  element("overlaps-title").textContent = `Squared overlaps of eigenvectors${shown.hess.split ? `, ${shown.hess.split}` : ""}`;
  const ranks = (count) => [...Array(count).keys()].map((k) => k + 1);
  show(
    map,
    [
      {
        type: "heatmap", z: shown.overlaps, x: ranks(shown.overlaps[0].length), y: ranks(shown.overlaps.length),
        zmin: 0, zmax: 1, xgap: 1, ygap: 1,
        colorscale: [[0, colour("tint")], [1, isDark() ? "#9fd3f5" : "#004569"]],
        colorbar: { thickness: 12, outlinewidth: 0, tickformat: ".1f" },
        hovertemplate: "outlier %{y} of Hess, %{x} of G<br>squared overlap %{z:.3f}<extra></extra>",
      },
    ],
    {
      xaxis: axis("outlier of G", { dtick: Math.ceil(shown.overlaps[0].length / 12), showgrid: false }),
      yaxis: axis("outlier of Hess", { autorange: "reversed", dtick: Math.ceil(shown.overlaps.length / 12), showgrid: false }),
    },
  );
}
