// Where pictures come from: the file button, dropping, pasting, and the example scenes.

import { get } from "./dom.js";

/**
 * @param {(file: File) => void} open called with whatever was brought, image or not: the service judges it
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
    field.value = ""; // so that the same file can be chosen again
  });

  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) {
      event.preventDefault();
      open(file);
    }
  });

  let depth = 0; // of the elements that a dragged file has entered and not left
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
 * The example scenes: each is a link to its file, so that it works without this script too.
 * @param {(file: File) => void} open
 * @param {(error: unknown) => void} complain
 */
export function examples(open, complain) {
  for (const link of /** @type {NodeListOf<HTMLAnchorElement>} */ (document.querySelectorAll("#examples a"))) {
    link.addEventListener("click", async (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) {
        return;
      }
      event.preventDefault();
      try {
        const response = await fetch(link.href);
        if (!response.ok) {
          throw new Error(`Status ${response.status}`);
        }
        const content = await response.blob();
        open(new File([content], link.pathname.split("/").pop() ?? "scene.jpg", { type: content.type }));
      } catch (error) {
        complain(error);
      }
    });
    // A service that was installed without its scenes shows no empty frames.
    link.querySelector("img")?.addEventListener("error", () => link.parentElement?.remove());
  }
}

/** @param {DragEvent} event */
function hasFiles(event) {
  return event.dataTransfer?.types.includes("Files") ?? false;
}
