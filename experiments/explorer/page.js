// The page: z is the code that is shown, A and B the ends of the way between two codes.
(() => {
  const $ = (id) => document.getElementById(id);
  const facts = JSON.parse($("data").textContent);
  const floats = (text) => {
    const raw = atob(text), bytes = Uint8Array.from(raw, (letter) => letter.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  };
  const { latent, order, sizes } = facts, [height, width, channels] = facts.shape;
  const codes = floats(facts.codes), n = codes.length / latent, centre = floats(facts.centre);
  const run = facts.program && decoderOf(facts.program);
  const chosen = () => Float32Array.from({ length: facts.classes }, (_, i) => +(i === +$("class").value));

  async function decode(z) {  // Float32Array [height * width * channels]
    const given = facts.classes ? [z, chosen()] : [z];
    if (run) return run(...given);
    const answer = await fetch("decode", { method: "POST", body: JSON.stringify(given.map((a) => [...a])) });
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    return new Float32Array(await answer.arrayBuffer());
  }

  function paint(canvas, x) {
    canvas.width = width;
    canvas.height = height;
    canvas.style.aspectRatio = `${width} / ${height}`;
    const pen = canvas.getContext("2d"), picture = pen.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = 255 * x[i * channels + (channels === 3 ? c : 0)];
      picture.data[4 * i + 3] = 255;
    }
    pen.putImageData(picture, 0, 0);
  }

  // The range of each dimension: three standard deviations of its codes around their mean, or all.
  const range = Array.from({ length: latent }, (_, d) => {
    let low = Infinity, high = -Infinity;
    for (let i = 0; i < n; i++) { low = Math.min(low, codes[i * latent + d]); high = Math.max(high, codes[i * latent + d]); }
    const room = 0.08 * (high - low) || 1;
    return [low - room, high + room];
  });
  const one = latent === 1;  // then what is up means nothing: the points are spread by their order
  let z = Float32Array.from(centre), A = null, B = null, next = "A", dirty = true, stale = true, playing = 0;
  let across = order[0], up = one ? -1 : order[1];
  const vertical = (i) => (one ? -0.9 + 1.8 * ((i * 0.618034) % 1) : codes[i * latent + up]);
  const spanUp = () => (one ? [-1, 1] : range[up]);
  const name = (d) => `z${d + 1}`;

  const palette = ["#4477dd", "#ee7733", "#229955", "#cc3344", "#9966cc", "#997755", "#dd66aa", "#888888", "#aaaa22", "#22aacc"];
  const kinds = facts.labels ? [...new Set(facts.labels)].sort((a, b) => a - b || (a < b ? -1 : 1)) : [];
  const colour = facts.labels && facts.labels.map((label) => {
    const k = kinds.indexOf(label);
    return k < 10 && kinds.length <= 10 ? palette[k] : `hsl(${(360 * k) / kinds.length} 60% 55%)`;
  });

  const plane = $("plane"), edge = 34;
  const at = (v, [low, high], length) => edge + ((v - low) / (high - low)) * (length - 2 * edge);
  const back = (p, [low, high], length) => low + ((p - edge) / (length - 2 * edge)) * (high - low);
  const place = (x, y, side) => [at(x, range[across], side), side - at(y, spanUp(), side)];

  function drawPlane() {
    const side = plane.clientWidth, scale = window.devicePixelRatio || 1;
    plane.width = plane.height = side * scale;
    const pen = plane.getContext("2d"), look = getComputedStyle(document.documentElement);
    const ink = look.getPropertyValue("--ink"), soft = look.getPropertyValue("--soft"), line = look.getPropertyValue("--line");
    pen.scale(scale, scale);
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "center";
    const ticks = ([low, high]) => {
      const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50].find((s) => (high - low) / s <= 8) || (high - low) / 5, found = [];
      for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(+(k * step).toPrecision(6));
      return found;
    };
    pen.strokeStyle = line;
    pen.fillStyle = soft;
    for (const v of ticks(range[across])) {
      const x = at(v, range[across], side);
      pen.beginPath(); pen.moveTo(x, edge - 10); pen.lineTo(x, side - edge + 4); pen.stroke();
      pen.fillText(v, x, side - edge + 18);
    }
    if (!one) for (const v of ticks(range[up])) {
      const y = side - at(v, range[up], side);
      pen.beginPath(); pen.moveTo(edge - 4, y); pen.lineTo(side - edge + 10, y); pen.stroke();
      pen.fillText(v, edge - 17, y + 4);
    }
    pen.fillStyle = ink;
    pen.fillText(name(across), side - 16, side - edge + 18);
    if (!one) pen.fillText(name(up), edge - 17, 16);
    pen.globalAlpha = 0.75;
    for (let i = 0; i < n; i++) {
      pen.fillStyle = colour ? colour[i] : soft;
      pen.beginPath();
      pen.arc(...place(codes[i * latent + across], vertical(i), side), n > 500 ? 2.6 : 3.4, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
    const mark = (code, label) => {
      const [x, y] = place(code[across], one ? code.level || 0 : code[up], side);
      pen.lineWidth = 2;
      pen.strokeStyle = ink;
      pen.fillStyle = look.getPropertyValue("--card");
      pen.beginPath(); pen.arc(x, y, label ? 11 : 7, 0, 7);
      if (label) pen.fill();
      pen.stroke();
      pen.fillStyle = ink;
      pen.font = "bold 12px system-ui, sans-serif";
      if (label) pen.fillText(label, x, y + 4);
      pen.lineWidth = 1;
    };
    if (A && B) {
      pen.strokeStyle = ink;
      pen.setLineDash([4, 4]);
      pen.beginPath();
      pen.moveTo(...place(A[across], one ? A.level : A[up], side));
      pen.lineTo(...place(B[across], one ? B.level : B[up], side));
      pen.stroke();
      pen.setLineDash([]);
    }
    mark(z);
    if (A) mark(A, "A");
    if (B) mark(B, "B");
  }

  const sliders = order.map((d) => {
    const label = document.createElement("label"), slider = document.createElement("input");
    const [text, value, size] = ["span", "output", "em"].map((kind) => document.createElement(kind));
    slider.type = "range";
    [slider.min, slider.max] = range[d];
    slider.step = "any";
    text.textContent = name(d);
    size.textContent = `${sizes[d]} ${facts.measure === "variance" ? "var." : "nats"}`;
    size.title = facts.measure;
    slider.addEventListener("input", () => { z[d] = +slider.value; moved(); });
    slider.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      z[d] = Math.max(range[d][0], Math.min(range[d][1], z[d] + (by * (range[d][1] - range[d][0])) / 50));
      moved();
    });
    label.append(text, slider, value, size);
    $("sliders").append(label);
    return { d, slider, value };
  });

  const moved = () => { dirty = true; };
  const strip = Array.from({ length: 11 }, (_, i) => {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Image ${i + 1} of 11 from A to B`);
    $("strip").append(canvas);
    return canvas;
  });
  const mix = (t) => Float32Array.from(A, (a, d) => a + t * (B[d] - a));

  let busy = false;
  async function frame(time) {
    requestAnimationFrame(frame);
    if (playing && A && B) {
      const t = ((time - playing) / 4000) % 2;
      $("way").value = t > 1 ? 2 - t : t;
      z = mix(+$("way").value);
      z.level = A.level + $("way").value * (B.level - A.level) || 0;
      dirty = true;
    }
    if (busy || !(dirty || stale)) return;
    busy = true;
    try {
      if (dirty) {
        dirty = false;
        drawPlane();
        for (const { d, slider, value } of sliders) { slider.value = z[d]; value.textContent = z[d].toFixed(2); }
        $("where").textContent = order.slice(0, 6).map((d) => `${name(d)} = ${z[d].toFixed(2)}`).join("   ");
        paint($("image"), await decode(z));
      }
      if (stale && !dirty) {
        stale = false;
        for (let i = 0; i < 11; i++) paint(strip[i], await decode(mix(i / 10)));
      }
    } catch (error) {
      $("where").textContent = String(error);
    }
    busy = false;
  }

  function end(which, code, level) {
    const copy = Float32Array.from(code);
    copy.level = level || 0;
    if (which === "A") A = copy; else B = copy;
    next = which === "A" ? "B" : "A";
    dirty = stale = true;
  }
  const under = (event) => {
    const box = plane.getBoundingClientRect(), side = box.width;
    const px = event.clientX - box.left, py = event.clientY - box.top;
    let nearest = -1, least = 8 * 8;
    for (let i = 0; i < n; i++) {
      const [x, y] = place(codes[i * latent + across], vertical(i), side), far = (x - px) ** 2 + (y - py) ** 2;
      if (far < least) { least = far; nearest = i; }
    }
    return [back(px, range[across], side), back(side - py, spanUp(), side), nearest];
  };
  plane.addEventListener("pointermove", (event) => {
    if (playing) return;
    const [x, y] = under(event);
    z[across] = x;
    if (one) z.level = y; else z[up] = y;
    moved();
  });
  plane.addEventListener("click", (event) => {
    const [, y, i] = under(event);
    if (i >= 0) z = codes.slice(i * latent, (i + 1) * latent);
    z.level = i >= 0 && one ? vertical(i) : y;
    if (i >= 0 && facts.classes) $("class").value = +facts.labels[i];
    stop();
    end(next, z, z.level);
  });
  plane.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase(), by = (event.shiftKey ? 1 : 0.2) / 10;
    const go = { arrowleft: [-1, 0], arrowright: [1, 0], arrowdown: [0, -1], arrowup: [0, 1] }[key];
    if (go) {
      event.preventDefault();
      z[across] += go[0] * by * (range[across][1] - range[across][0]);
      if (!one) z[up] += go[1] * by * (range[up][1] - range[up][0]);
      moved();
    } else if (key === "a" || key === "b") end(key.toUpperCase(), z, z.level);
    else if (key === "enter" || key === " ") { event.preventDefault(); end(next, z, z.level); }
  });
  const stop = () => { playing = 0; $("play").textContent = "Play"; };
  $("play").addEventListener("click", () => {
    if (playing) return stop();
    playing = performance.now();
    $("play").textContent = "Stop";
  });
  $("way").addEventListener("input", () => { stop(); z = mix(+$("way").value); moved(); });
  $("centre").addEventListener("click", () => { stop(); z = Float32Array.from(centre); moved(); });
  $("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
    moved();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", moved);
  window.addEventListener("resize", moved);

  $("title").textContent = facts.title;
  document.title = `Latent space: ${facts.title}`;
  $("count").textContent = `${n} test images`;
  for (const [id, selected] of [["across", across], ["up", up]]) {
    $(id).parentElement.hidden = id === "up" && one;
    for (const d of order) $(id).add(new Option(name(d), d, false, d === selected));
    $(id).addEventListener("change", () => { across = +$("across").value; if (!one) up = +$("up").value; moved(); });
  }
  $("classbox").hidden = !facts.classes;
  for (let i = 0; i < facts.classes; i++) $("class").add(new Option(i, i));
  $("class").addEventListener("change", () => { dirty = stale = true; });
  if (colour) for (const kind of kinds) {
    const item = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = colour[facts.labels.indexOf(kind)];
    item.append(dot, kind);
    $("legend").append(item);
  }
  // The way at the start: from the first test image to the first one of another class.
  const other = facts.labels ? facts.labels.findIndex((label) => label !== facts.labels[0]) : 1;
  end("A", codes.slice(0, latent), vertical(0));
  const last = other < 1 ? Math.min(1, n - 1) : other;
  end("B", codes.slice(last * latent, (last + 1) * latent), vertical(last));
  z = codes.slice(0, latent);
  if (facts.classes && facts.labels) $("class").value = +facts.labels[0];

  // file.html#decode=BASE64 of float32 codes: their images, in base64, in the element `decoded`.
  const asked = /^#decode=(.*)$/.exec(location.hash), theme = /^#theme=(light|dark)$/.exec(location.hash);
  if (theme) document.documentElement.dataset.theme = theme[1];
  if (asked) (async () => {
    const all = floats(asked[1]), per = latent + facts.classes, images = [];
    for (let i = 0; i < all.length; i += per) {
      if (facts.classes) $("class").value = all.slice(i + latent, i + per).indexOf(1);
      images.push(...(await decode(all.slice(i, i + latent))));
    }
    const bytes = new Uint8Array(Float32Array.from(images).buffer);
    $("decoded").textContent = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  })();
  requestAnimationFrame(frame);
})();
