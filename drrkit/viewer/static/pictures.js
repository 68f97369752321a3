// Grey pictures and what is laid over one another: no document, no socket.

const LEAST_SIDE = 512; // small X-rays are enlarged: edges are thin then
const SMOOTHING = 6; // passes of a binomial filter, before edges are looked for
const EDGE = [64, 255, 120];

/** A grey picture {rows, cols, grey: Uint8Array} as a canvas. */
export function toCanvas({ rows, cols, grey }) {
  const canvas = new OffscreenCanvas(cols, rows);
  const image = new ImageData(cols, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < grey.length; i++) pixels[i] = 0xff000000 | (grey[i] * 0x010101);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The size at which an X-ray of this size is shown. */
export function shownSize({ rows, cols }) {
  const factor = Math.max(1, Math.ceil(LEAST_SIDE / Math.max(rows, cols)));
  return { rows: rows * factor, cols: cols * factor };
}

/** The picture with another number of pixels, interpolated. */
export function resized(picture, { rows, cols }) {
  if (picture.rows === rows && picture.cols === cols) return picture;
  const context = new OffscreenCanvas(cols, rows).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(toCanvas(picture), 0, 0, cols, rows);
  const colours = context.getImageData(0, 0, cols, rows).data;
  const grey = new Uint8Array(rows * cols);
  for (let i = 0; i < grey.length; i++) grey[i] = colours[4 * i];
  return { rows, cols, grey };
}

/** Ridges of the gradient, the stronger part of them: 1 where there is an edge. */
export function edges({ rows, cols, grey }) {
  let smooth = Float32Array.from(grey);
  for (let pass = 0; pass < SMOOTHING; pass++) smooth = blurred(smooth, cols);
  const size = rows * cols;
  const across = new Float32Array(size);
  const down = new Float32Array(size);
  const length = new Float32Array(size);
  for (let row = 1; row < rows - 1; row++) {
    for (let col = 1; col < cols - 1; col++) {
      const i = row * cols + col;
      across[i] = smooth[i + 1] - smooth[i - 1];
      down[i] = smooth[i + cols] - smooth[i - cols];
      length[i] = Math.hypot(across[i], down[i]);
    }
  }
  const ridges = [];
  const neighbours = [1, cols + 1, cols, cols - 1];
  for (let row = 2; row < rows - 2; row++) {
    for (let col = 2; col < cols - 2; col++) {
      const i = row * cols + col;
      // The direction in steps of 45 degrees; opposite ones are the same line.
      const octant = Math.round(Math.atan2(down[i], across[i]) * (4 / Math.PI) + 4) % 4;
      const step = neighbours[octant];
      if (length[i] > length[i - step] && length[i] >= length[i + step]) ridges.push(i);
    }
  }
  const found = new Uint8Array(size);
  const lengths = Float32Array.from(ridges, (i) => length[i]).sort();
  const least = Math.max(1, lengths[Math.floor(0.6 * lengths.length)] ?? 0);
  for (const i of ridges) if (length[i] >= least) found[i] = 1;
  return found;
}

function blurred(values, cols) {
  const along = new Float32Array(values.length);
  const both = new Float32Array(values.length);
  for (let i = 1; i < values.length - 1; i++) {
    along[i] = 0.25 * values[i - 1] + 0.5 * values[i] + 0.25 * values[i + 1];
  }
  for (let i = cols; i < values.length - cols; i++) {
    both[i] = 0.25 * along[i - cols] + 0.5 * along[i] + 0.25 * along[i + cols];
  }
  return both;
}

/** How the X-ray and the DRR may be laid over one another, by name: (x, d, share) => grey. */
const MIXED = {
  blend: (x, d, share) => x + share * (d - x),
  checkerboard: (x, d, share) => x + share * (d - x),
  difference: (x, d) => (x - d) / 2 + 128,
  "X-ray": (x) => x,
  DRR: (x, d) => d,
};

export const MODES = ["blend", "edges", "checkerboard", "difference", "X-ray", "DRR"];

/** All grey there is; narrower windows show less of it with more contrast. */
export const WHOLE = { level: 128, width: 256 };

/** What each grey value is shown as: black below the window about the level, white above it. */
function shades({ level, width }) {
  const low = level - width / 2;
  return Uint8ClampedArray.from({ length: 256 }, (_, grey) => (256 * (grey - low)) / width);
}

/**
 * X-ray and DRR of one size as an image.
 * opacity, from 0 to 1, is that of what lies on the X-ray; window is the part of their grey shown.
 */
export function composed(xray, drr, mode, opacity = 1, window = WHOLE) {
  const { rows, cols } = xray;
  const shade = shades(window);
  const image = new ImageData(cols, rows);
  const out = image.data;
  const marked = mode === "edges" ? edges(drr) : null;
  const mix = MIXED[mode] ?? MIXED["X-ray"];
  const side = Math.max(1, Math.floor(Math.min(rows, cols) / 8));
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const i = row * cols + col;
      const x = shade[xray.grey[i]];
      const d = shade[drr.grey[i]];
      let value = mix(x, d, opacity);
      if (mode === "difference") value = x + opacity * (value - x);
      if (mode === "checkerboard" && (Math.floor(row / side) + Math.floor(col / side)) % 2 === 0) value = x;
      const k = 4 * i;
      out[k] = out[k + 1] = out[k + 2] = value;
      if (marked?.[i]) for (let c = 0; c < 3; c++) out[k + c] = value + opacity * (EDGE[c] - value);
      out[k + 3] = 255;
    }
  }
  return image;
}
