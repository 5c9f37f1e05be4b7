// Spectrum ------------------------------------------------------------------------------------------------------------

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
    ...(data.runs.length > 1 ? [plain(item.run)] : []),
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
      symbol: kept.map((i) => (open(i) ? hollow(look.symbol) : look.symbol)),
      size: outliers ? look.size : 5,
      color: outliers ? look.dark : look.light,
      line: outliers ? { color: kept.map((i) => (open(i) ? look.dark : colour("paper"))), width: 1 } : { width: 0 },
    },
  };
}

function tailTrace(item) {
  const { x, y, exponent, verdict, fits } = item.tail;
  return {
    type: "scatter", mode: "lines", legendgroup: legendGroup(item), x, y,
    name: `tail |λ|⁻ᵃ, a = ${exponent}`,
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
    line: { color: colour("soft"), width: 2, dash: "dashdot" }, hoverinfo: "text",
    hovertext: x.map(() => `<b>Marchenko–Pastur law of ${plain(nameOf(item))}</b><br>${plain(text)}`),
  };
}

// With axes held, they have room for all sample sizes and checkpoints of the run.
const held = (members) => (state.fixed && inStudy() ? data.spectra.filter(isChosen) : members);

const INSET = 0.3; // of the axis: a bulk that takes less of it is drawn a second time

// The bulk in the empty part of the figure above the outliers, where their distance leaves it no room.
function insetOf(members, ruling, [low, high], yRange) {
  const ends = ruling.map((item) => item.bulk);
  const range = ruling.length ? padded(least(ends.map((end) => end[0])), most(ends.map((end) => end[1])), 0.06) : [0, 1];
  if (state.axis !== "linear" || narrow() || !members.length || range[1] - range[0] > INSET * (high - low)) return { traces: [], axes: {} };
  const copied = [...members.map((item) => bulkTrace(item, false)), ...members.map((item) => pointsTrace(item, false, false))];
  const style = { linecolor: colour("edge"), tickcolor: colour("edge"), tickfont: { size: 12 }, mirror: true, title: { text: "" } };
  return {
    traces: copied.map((trace) => ({ ...trace, xaxis: "x2", yaxis: "y2", showlegend: false })),
    axes: {
      xaxis2: axis("", { ...style, range, domain: [0.5, 0.99], anchor: "y2", nticks: 7 }),
      yaxis2: axis("", { ...style, type: "log", range: yRange, domain: [0.46, 0.99], anchor: "x2" }),
    },
  };
}

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
  const inset = insetOf(members, ruling, xRange, yRange);
  const unit = log ? "per decade" : "per unit of λ";
  const nothing = state.matrices.size && state.splits.size ? `Not measured yet at ${plain(here())}.` : "Nothing is chosen: choose a matrix and a split.";
  show(element("spectrum"), [...traces, ...inset.traces], {
    ...inset.axes,
    xaxis: axis(log ? MAGNITUDE(members) : EIGENVALUE(members), { type: log ? "log" : "linear", range: xRange }),
    yaxis: axis(`bulk: share of eigenvalues ${unit}<br>points: resolved eigenvalues, 1/p each`, { type: "log", range: yRange }),
    annotations: members.length ? [] : [message(nothing)],
  });
}

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

// Labels depend on where points are on the screen, so they are placed again after every zoom and resize.
function labelOutliers() {
  const figure = element("spectrum");
  const members = selected();
  if (!members.length || !figure._fullLayout) return;
  const log = state.axis === "log";
  const range = figure.layout.xaxis.range.map(Number);
  const width = figure._fullLayout._size.w;
  const key = JSON.stringify([members.map((item) => item.place), log, range, width, isDark()]);
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
      bgcolor: colour("veil"),
      borderpad: 0,
      font: { size: 13, color: label.colour },
      captureevents: false,
    })),
  });
}
