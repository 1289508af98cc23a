// The sources of pictures: the file button, drag and drop, the clipboard, and the example images.

import { get } from "./dom.js";

/**
 * @param {(file: File) => void} open called with each file, image or not; the service decides
 */
export function listen(open) {
  const field = /** @type {HTMLInputElement} */ (get("file"));
  for (const button of document.querySelectorAll("button.choose")) {
    button.addEventListener("click", () => field.click());
  }
  field.addEventListener("change", () => {
    const [file] = field.files ?? [];
    if (file) {
      open(file);
    }
    // So that choosing the same file again is a change.
    field.value = "";
  });

  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) {
      event.preventDefault();
      open(file);
    }
  });

  // Elements that a dragged file has entered and not left.
  let depth = 0;
  const over = (/** @type {number} */ change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && over(1));
  document.addEventListener("dragleave", (event) => hasFiles(event) && over(-1));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    const [file] = event.dataTransfer?.files ?? [];
    over(-depth);
    if (file) {
      event.preventDefault();
      open(file);
    }
  });
}

/**
 * The example images. Each is a link to its file, which also works without this script.
 * @param {(file: File) => void} open
 * @param {(error: unknown) => void} complain
 * @param {() => number} countOpenings how many pictures were opened: one that is chosen later is not replaced
 */
export function examples(open, complain, countOpenings) {
  let clicks = 0;
  for (const link of /** @type {NodeListOf<HTMLAnchorElement>} */ (document.querySelectorAll("#examples a"))) {
    link.addEventListener("click", async (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) {
        return;
      }
      event.preventDefault();
      clicks += 1;
      const [click, before] = [clicks, countOpenings()];
      const isLatest = () => click === clicks && before === countOpenings();
      try {
        const response = await fetch(link.href);
        if (!response.ok) {
          throw new Error(`Status ${response.status}`);
        }
        const content = await response.blob();
        if (isLatest()) {
          open(new File([content], link.pathname.split("/").pop() ?? "example", { type: content.type }));
        }
      } catch (error) {
        if (isLatest()) {
          complain(error);
        }
      }
    });
    // A service that was installed without the examples shows none.
    link.querySelector("img")?.addEventListener("error", () => link.parentElement?.remove());
  }
}

/** @param {DragEvent} event */
function hasFiles(event) {
  return event.dataTransfer?.types.includes("Files") ?? false;
}
