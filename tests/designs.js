// What tests/test_designs.py asks of a page in one design after the other.
(() => {
  const root = document.querySelector(".credly");
  root.parentElement.id = "room";

  const dialog = document.querySelector("dialog[open]");
  const isSeen = (e) =>
    e.checkVisibility({ visibilityProperty: true }) &&
    e.getBoundingClientRect().width > 1 &&
    !e.closest(".credly-hidden, .credly thead, option, optgroup") &&
    (!dialog || dialog.contains(e));
  const all = () => [root, ...root.querySelectorAll("*:not(option, optgroup)")];
  const name = (e) =>
    `${e.localName}${e.id ? `#${e.id}` : ""}.${e.getAttribute("class") ?? ""} "${e.textContent.trim().slice(0, 30)}"`;

  // Colours, as the browser paints them
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();

  function paint(colour) {
    if (!known.has(colour)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      known.set(colour, [r, g, b, a / 255]);
    }

    return known.get(colour);
  }

  const over = (top, below) =>
    [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);

  function behind(e) {
    const layers = [];

    for (; e; e = e.parentElement) {
      layers.push(paint(getComputedStyle(e).backgroundColor));

      if (layers.at(-1)[3] === 1) {
        break;
      }
    }

    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255, 1]);
  }

  function light([r, g, b]) {
    const [x, y, z] = [r, g, b].map((each) => {
      const part = each / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  }

  function contrast(colour, ground) {
    const [a, b] = [light(over(paint(colour), ground)), light(ground)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }

  function faint() {
    const found = [];

    const need = (least, colour, ground, e, what) => {
      const is = contrast(colour, ground);

      if (is < least) {
        found.push(`${what} ${is.toFixed(2)} of ${name(e)}`);
      }
    };

    for (const e of all().filter(isSeen)) {
      const style = getComputedStyle(e);
      const isField = e.matches("input:not([type=radio], [type=checkbox]), select, textarea");
      const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());

      if (hasText || isField) {
        need(4.5, style.color, behind(e), e, "text");
      }

      if (e.placeholder) {
        need(4.5, getComputedStyle(e, "::placeholder").color, behind(e), e, "placeholder");
      }

      if (isField || e.matches(".credly-button:not(.credly-icon)")) {
        const ground = behind(e.parentElement);
        const best = Math.max(
          contrast(style.borderTopColor, ground),
          contrast(style.backgroundColor, ground),
        );

        if (best < 3) {
          found.push(`edge ${best.toFixed(2)} of ${name(e)}`);
        }
      }

      if (e.localName === "path") {
        need(3, style.stroke, behind(e), e, "icon");
      }
    }

    return found;
  }

  // Who stands on a keyboard sees where.
  function unfocused() {
    const kinds = ["a", "button", "input:not([type=hidden])", "select", "textarea"];
    const found = [];
    const before = document.activeElement;

    for (const kind of kinds) {
      const e = [...root.querySelectorAll(kind)].find(isSeen);
      e?.focus({ preventScroll: true });

      if (e && document.activeElement === e) {
        const { outlineStyle, outlineWidth, outlineColor } = getComputedStyle(e);

        if (
          outlineStyle !== "solid" ||
          outlineWidth !== "3px" ||
          contrast(outlineColor, behind(e.parentElement)) < 3
        ) {
          found.push(`focus of ${name(e)}: ${outlineStyle} ${outlineWidth}`);
        }
      }
    }

    document.activeElement?.blur();
    before?.focus?.({ preventScroll: true });
    return found;
  }

  function wide() {
    const width = document.documentElement.clientWidth;
    const isOut = (e) => {
      const box = e.getBoundingClientRect();
      return box.right > width + 0.5 || box.left < -0.5;
    };
    const found = all().filter((e) => isSeen(e) && isOut(e)).map((e) => `wide: ${name(e)}`);

    if (document.documentElement.scrollWidth > width) {
      found.push(`page of ${document.documentElement.scrollWidth}`);
    }

    return found;
  }

  // Everything that has a say in how an element looks, but for its colours.
  const sides = (...names) =>
    names.flatMap((each) =>
      ["top", "right", "bottom", "left"].map((side) => each.replace("*", side)),
    );
  const corners = ["top-left", "top-right", "bottom-left", "bottom-right"];
  const PROPERTIES = [
    ...sides("margin-*", "padding-*", "border-*-width", "border-*-style"),
    ...corners.map((each) => `border-${each}-radius`),
    ..."animation-name appearance background-image box-shadow box-sizing cursor display".split(" "),
    ..."filter float font-size font-style font-weight letter-spacing line-height".split(" "),
    ..."list-style-type max-width min-width min-height opacity overflow-x position".split(" "),
    ..."resize stroke-width text-align text-decoration-line text-indent text-shadow".split(" "),
    ..."text-transform transform transition-duration vertical-align visibility".split(" "),
    ..."white-space-collapse word-break word-spacing z-index".split(" "),
  ];

  function shape() {
    const at = (dialog ?? root).getBoundingClientRect();
    return all()
      .filter((e) => !dialog || dialog.contains(e))
      .map((e) => {
        const style = getComputedStyle(e);
        const box = e.getBoundingClientRect();
        const parts = ["::before", "::after"].map((part) => getComputedStyle(e, part));
        return {
          e,
          box: [box.left - at.left, box.top - at.top, box.width, box.height],
          style: [
            ...PROPERTIES.map((each) => style.getPropertyValue(each)),
            ...parts.flatMap((part) => [part.content, part.width, part.fontSize, part.marginRight]),
          ],
        };
      });
  }

  const NAMES = [
    ...PROPERTIES,
    ..."before after".split(" ").flatMap((part) =>
      ["content", "width", "font-size", "margin"].map((each) => `${part} ${each}`),
    ),
  ];
  const models = new Map();

  function misshapen(key, isModel) {
    const found = [];
    const now = shape();

    if (isModel) {
      models.set(key, now);
      return found;
    }

    for (const [i, { e, box, style }] of now.entries()) {
      const model = models.get(key)[i];
      const others = style.flatMap((each, n) =>
        each === model.style[n] ? [] : [`${NAMES[n]} ${each}, not ${model.style[n]}`],
      );

      if (isSeen(e) && box.some((each, n) => Math.abs(each - model.box[n]) > 1)) {
        others.push(`box ${box.map(Math.round)}, not ${model.box.map(Math.round)}`);
      }

      if (others.length) {
        found.push(`${name(e)}: ${others.slice(0, 4).join("; ")}`);
      }
    }

    return found;
  }

  function load(names, isLast) {
    for (const each of ["room", ...names]) {
      const sheet = document.createElement("link");
      sheet.rel = "stylesheet";
      sheet.href = `/designs/${each}.css`;
      sheet.dataset.design = each;
      isLast ? document.body.append(sheet) : document.head.prepend(sheet);
    }
  }

  // No promise: where JavaScript is off, no event tells.
  const isLoaded = () =>
    [...document.querySelectorAll("[data-design]")].every((each) => each.sheet);

  function wear(design, scheme) {
    // Of the link, "disabled" would load the sheet anew, and it would be in force later.
    for (const { dataset, sheet } of document.querySelectorAll("[data-design]")) {
      sheet.disabled = ![design, "room"].includes(dataset.design);
    }

    const page = document.documentElement;
    page.dataset.theme = scheme;
    page.dataset.bsTheme = scheme;
    page.classList.toggle("dark", scheme === "dark");
  }

  // Shapes do not depend on light or dark, and colours not on the width: each is looked
  // at where it may differ. The first design is the model of the others.
  function judge(designs, scheme, width) {
    const isLight = scheme === "light";
    const found = [];

    for (const [i, design] of designs.entries()) {
      wear(design, scheme);
      const problems = [
        ...(isLight ? [...wide(), ...misshapen(width, i === 0)] : []),
        ...(width > 1000 ? [...faint(), ...unfocused()] : []),
      ];
      found.push(...problems.slice(0, 12).map((each) => `${width} ${scheme} ${design}: ${each}`));
    }

    return found;
  }

  // All that the browser knows about the looks of what is not ours
  function theirs() {
    return [...document.querySelectorAll("*")]
      .filter((e) => !root.contains(e) && !e.closest("head, link, script"))
      .map((e) => {
        const style = getComputedStyle(e);
        return [name(e), ...[...style].map((each) => `${each}: ${style.getPropertyValue(each)}`)];
      });
  }

  function leaks() {
    const ours = [...document.styleSheets].find((each) => each.href?.includes("credly.css"));
    const host = document.createElement("div");
    host.innerHTML =
      "<h1>H</h1><h2>H</h2><p>P <a href=#x>A</a> <code>C</code></p><ul><li>L</ul><dl><dt>D<dd>D</dl>" +
      "<table class=table><thead><tr><th>H<tbody><tr><td>D</table><form><fieldset><legend>L</legend>" +
      "<label>L<input><input type=search placeholder=P><input type=radio></label><select><option>O</select>" +
      "<textarea></textarea><button class='btn button'>B</button><progress></progress></fieldset></form>" +
      "<section><nav><time>T</time></nav></section><article class=card>A</article><dialog open>D</dialog>";
    document.body.append(host);
    // Room and height are not looks.
    root.style.display = "none";
    const found = theirs();
    ours.disabled = true;
    const without = theirs();
    ours.disabled = false;
    root.style.display = "";
    host.remove();
    return found.flatMap((each, i) => {
      const others = each.filter((line, n) => line !== without[i][n]);
      return others.length ? [`${each[0]} ${others.slice(0, 3)}`] : [];
    });
  }

  window.designs = { isLoaded, judge, leaks, load, wear };
})();
