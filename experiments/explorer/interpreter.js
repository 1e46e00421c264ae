// Runs the steps of program.py. All values are flat Float32Arrays in row-major order; what does not
// depend on the inputs is computed once.
"use strict";

function decoderOf(program) {
  const { shapes, steps } = program;
  const size = (shape) => shape.reduce((a, b) => a * b, 1);
  const strides = (shape) => {
    const found = new Array(shape.length);
    for (let i = shape.length - 1, s = 1; i >= 0; s *= shape[i--]) found[i] = s;
    return found;
  };
  // For every entry of `shape`: where offset + sum index * step points.
  const places = (shape, by, offset = 0) => {
    const n = size(shape), found = new Int32Array(n), index = new Array(shape.length).fill(0);
    for (let i = 0, at = offset; i < n; i++) {
      found[i] = at;
      for (let d = shape.length - 1; d >= 0; d--) {
        at += by[d];
        if (++index[d] < shape[d]) break;
        at -= by[d] * shape[d];
        index[d] = 0;
      }
    }
    return found;
  };
  const erfc = (x) => {  // Numerical error below 1e-12: series near 0, continued fraction beyond.
    const a = Math.abs(x);
    if (a < 2.5) {
      let term = a, sum = a;
      for (let n = 1; n < 60; n++) { term *= (-a * a) / n; sum += term / (2 * n + 1); }
      return 1 - Math.sign(x) * (2 / Math.sqrt(Math.PI)) * sum;
    }
    let f = a;
    for (let n = 60; n > 0; n--) f = a + n / 2 / f;
    const tail = Math.exp(-a * a) / Math.sqrt(Math.PI) / f;
    return x > 0 ? tail : 2 - tail;
  };
  const even = (x) => { const r = Math.round(x); return Math.abs(x % 1) === 0.5 && r % 2 ? r - 1 : r; };
  const away = (x) => Math.sign(x) * Math.round(Math.abs(x));
  const M = Math;
  const one = {
    neg: (a) => -a, exp: M.exp, exp2: (a) => 2 ** a, log: M.log, log1p: M.log1p, expm1: M.expm1,
    tanh: M.tanh, logistic: (a) => 1 / (1 + M.exp(-a)), sqrt: M.sqrt, rsqrt: (a) => 1 / M.sqrt(a),
    cbrt: M.cbrt, abs: M.abs, sign: M.sign, floor: M.floor, ceil: M.ceil, round: away,
    round_even: even, trunc: M.trunc, sin: M.sin, cos: M.cos, tan: M.tan, asin: M.asin,
    acos: M.acos, atan: M.atan, sinh: M.sinh, cosh: M.cosh, asinh: M.asinh, acosh: M.acosh,
    atanh: M.atanh, erf: (a) => 1 - erfc(a), erfc, square: (a) => a * a, not: (a) => +!a,
    is_finite: (a) => +Number.isFinite(a), truth: (a) => +(a !== 0),
  };
  const least = (a, b) => M.min(a, b), most = (a, b) => M.max(a, b);
  const two = {
    add: (a, b) => a + b, sub: (a, b) => a - b, mul: (a, b) => a * b, div: (a, b) => a / b,
    quotient: (a, b) => M.trunc(a / b), max: most, min: least, pow: (a, b) => a ** b,
    rem: (a, b) => a % b, atan2: M.atan2, eq: (a, b) => +(a === b), ne: (a, b) => +(a !== b),
    lt: (a, b) => +(a < b), le: (a, b) => +(a <= b), gt: (a, b) => +(a > b),
    ge: (a, b) => +(a >= b), and: (a, b) => +(a && b), or: (a, b) => +(a || b),
    xor: (a, b) => +(a !== b),
  };
  const folds = {
    reduce_sum: [0, two.add], reduce_prod: [1, two.mul], reduce_max: [-Infinity, most],
    reduce_min: [Infinity, least], reduce_and: [1, two.and], reduce_or: [0, two.or],
  };
  const gathered = (where) => (out, [a]) => { for (let i = 0; i < out.length; i++) out[i] = a[where[i]]; };
  const spread = (own, shape) => {  // strides by which axes of size 1 repeat
    const by = strides(own), more = shape.length - own.length;
    return shape.map((n, d) => (d < more || own[d - more] === 1 ? 0 : by[d - more]));
  };

  const make = {
    reshape: () => (out, [a]) => out.set(a),
    broadcast: (shape, [own], { axes }) => {
      const by = strides(own), steps = shape.map(() => 0);
      axes.forEach((axis, d) => { steps[axis] = own[d] === 1 ? 0 : by[d]; });
      return gathered(places(shape, steps));
    },
    transpose: (shape, [own], { order }) => {
      const by = strides(own);
      return gathered(places(shape, order.map((axis) => by[axis])));
    },
    rev: (shape, _, { axes }) => {
      const by = strides(shape);
      let offset = 0;
      for (const d of axes) { offset += by[d] * (shape[d] - 1); by[d] = -by[d]; }
      return gathered(places(shape, by, offset));
    },
    slice: (shape, [own], { start, by }) => {
      const s = strides(own);
      return gathered(places(shape, s.map((n, d) => n * by[d]), s.reduce((a, n, d) => a + n * start[d], 0)));
    },
    dynamic_slice: (shape, [own]) => {
      const s = strides(own), where = places(shape, s);
      return (out, [a, ...start]) => {
        let offset = 0;
        s.forEach((n, d) => { offset += n * M.max(0, M.min(start[d][0], own[d] - shape[d])); });
        for (let i = 0; i < out.length; i++) out[i] = a[where[i] + offset];
      };
    },
    iota: (shape, _, { axis }) => {
      const s = strides(shape)[axis];
      return (out) => { for (let i = 0; i < out.length; i++) out[i] = M.floor(i / s) % shape[axis]; };
    },
    concatenate: (shape, parts, { axis }) => {
      const s = strides(shape);
      let at = 0;
      const where = parts.map((own) => { const p = places(own, s, at * s[axis]); at += own[axis]; return p; });
      return (out, given) => given.forEach((a, k) => { for (let i = 0; i < a.length; i++) out[where[k][i]] = a[i]; });
    },
    pad: (shape, [own], { config }) => {
      const index = new Array(own.length), total = size(own), s = strides(shape), of = strides(own);
      return (out, [a, value]) => {
        out.fill(value[0]);
        for (let i = 0; i < total; i++) {
          let at = 0, inside = true;
          for (let d = 0; d < own.length; d++) {
            index[d] = config[d][0] + (M.floor(i / of[d]) % own[d]) * (1 + config[d][2]);
            inside = inside && index[d] >= 0 && index[d] < shape[d];
            at += index[d] * s[d];
          }
          if (inside) out[at] = a[i];
        }
      };
    },
    cumsum: (shape, _, { axis, reverse }) => {
      const s = strides(shape)[axis], n = shape[axis];
      return (out, [a]) => {
        for (let i = 0; i < out.length; i++) {
          if (M.floor(i / s) % n) continue;
          for (let k = 0, sum = 0; k < n; k++) { const at = i + s * (reverse ? n - 1 - k : k); out[at] = sum += a[at]; }
        }
      };
    },
    select_n: (shape, [which]) => {
      const alone = size(which) === 1;
      return (out, [w, ...cases]) => { for (let i = 0; i < out.length; i++) out[i] = cases[w[alone ? 0 : i]][i]; };
    },
    clamp: () => (out, [low, a, high]) => {
      const l = low.length > 1, h = high.length > 1;
      for (let i = 0; i < out.length; i++) out[i] = M.min(M.max(a[i], low[l ? i : 0]), high[h ? i : 0]);
    },
    product: (_, __, { counts: [batch, m, k, n] }) => (out, [a, b]) => {
      const row = new Float64Array(n);
      for (let g = 0; g < batch; g++) for (let i = 0; i < m; i++) {
        row.fill(0);
        for (let j = 0; j < k; j++) {
          const v = a[(g * m + i) * k + j], at = (g * k + j) * n;
          if (v !== 0) for (let l = 0; l < n; l++) row[l] += v * b[at + l];
        }
        out.set(row, (g * m + i) * n);
      }
    },
    conv: (shape, [[, h, w, c], [kh, kw, ci]], { strides: [sy, sx], pads: [py, px], spread: [uy, ux], holes: [dy, dx], groups }) => {
      const [n, oh, ow, f] = shape, own = f / groups, row = new Float64Array(f);
      return (out, [x, kernel]) => {
        for (let b = 0, at = 0; b < n; b++) for (let y = 0; y < oh; y++) for (let z = 0; z < ow; z++, at += f) {
          row.fill(0);
          for (let k = 0; k < kh; k++) {
            const iy = y * sy + k * dy - py, ry = iy / uy;
            if (iy < 0 || iy % uy || ry >= h) continue;
            for (let l = 0; l < kw; l++) {
              const ix = z * sx + l * dx - px, rx = ix / ux;
              if (ix < 0 || ix % ux || rx >= w) continue;
              const from = ((b * h + ry) * w + rx) * c;
              for (let g = 0; g < groups; g++) for (let i = 0; i < ci; i++) {
                const v = x[from + g * ci + i], to = ((k * kw + l) * ci + i) * f, end = (g + 1) * own;
                if (v !== 0) for (let o = g * own; o < end; o++) row[o] += v * kernel[to + o];
              }
            }
          }
          out.set(row, at);
        }
      };
    },
  };

  const built = (name, shape, given, how) => {
    if (one[name]) {
      const f = one[name];
      return (out, [a]) => { for (let i = 0; i < out.length; i++) out[i] = f(a[i]); };
    }
    if (two[name]) {
      const f = two[name], [p, q] = given.map((own) => places(shape, spread(own, shape)));
      return (out, [a, b]) => { for (let i = 0; i < out.length; i++) out[i] = f(a[p[i]], b[q[i]]); };
    }
    if (folds[name]) {
      const [start, f] = folds[name], [own] = given, kept = own.map((_, d) => !how.axes.includes(d));
      const by = new Array(own.length).fill(0), s = strides(shape);
      kept.filter((k) => k).forEach((_, i) => { by[kept.map((k, d) => (k ? d : -1)).filter((d) => d >= 0)[i]] = s[i]; });
      const where = places(own, by), sums = new Float64Array(size(shape));
      return (out, [a]) => {
        sums.fill(start);
        for (let i = 0; i < a.length; i++) sums[where[i]] = f(sums[where[i]], a[i]);
        out.set(sums);
      };
    }
    if (!make[name]) throw new Error(`no operation ${name}`);
    return make[name](shape, given, how);
  };

  const text = atob(program.numbers), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const view = new DataView(bytes.buffer), values = new Array(shapes.length);
  for (const [id, at] of program.constants) {
    const value = (values[id] = new Float32Array(size(shapes[id])));
    for (let i = 0; i < value.length; i++) value[i] = view.getFloat32(4 * (at + i), true);
  }
  const changing = new Set(program.inputs), each = [];
  for (const [name, out, given, how] of steps) {
    const run = built(name, shapes[out], given.map((id) => shapes[id]), how);
    values[out] = new Float32Array(size(shapes[out]));
    if (given.some((id) => changing.has(id))) {
      changing.add(out);
      each.push([run, out, given]);
    } else run(values[out], given.map((id) => values[id]));
  }
  return (...inputs) => {
    program.inputs.forEach((id, i) => { values[id] = Float32Array.from(inputs[i]); });
    for (const [run, out, given] of each) run(values[out], given.map((id) => values[id]));
    return Float32Array.from(values[program.output]);
  };
}
