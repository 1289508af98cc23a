// The colours of categories, as in the overlay that the service draws (model/images/overlay.py names the sources).

/** @typedef {readonly [number, number, number]} Colour red, green, blue, 0 to 255 */

/** @type {readonly Colour[]} */
const FIRST = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [204, 121, 167],
  [240, 228, 66],
  [0, 114, 178],
  [213, 94, 0],
  [136, 34, 85],
];

/**
 * @param {Colour} colour
 * @param {number} other
 * @param {number} share
 * @returns {Colour}
 */
function mix([red, green, blue], other, share) {
  const mixed = (/** @type {number} */ value) => Math.round(value + (other - value) * share);
  return [mixed(red), mixed(green), mixed(blue)];
}

/** Eight colours, then lighter and darker versions of them. @type {readonly Colour[]} */
export const PALETTE = [
  ...FIRST,
  ...FIRST.map((colour) => mix(colour, 255, 0.5)),
  ...FIRST.map((colour) => mix(colour, 0, 0.45)),
];

/**
 * Ids that lie 24 apart share a colour.
 * @param {number} categoryId
 * @returns {Colour}
 */
export function colourOf(categoryId) {
  const place = (categoryId - 1) % PALETTE.length;
  return PALETTE[place < 0 ? place + PALETTE.length : place];
}

/**
 * Black or white, whichever has the higher contrast; they are equal at a relative luminance of 0.179 (WCAG 2.2).
 * @param {Colour} colour
 */
export function inkOn(colour) {
  const [red, green, blue] = colour.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

/** @param {Colour} colour */
export function css([red, green, blue]) {
  return `rgb(${red}, ${green}, ${blue})`;
}
