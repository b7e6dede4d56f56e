// Loads the page again while a part of it cannot be loaded, as when the computer's network changes.
addEventListener(
  "error",
  ({ target }) => {
    if (!(target instanceof HTMLScriptElement || target.rel === "stylesheet")) return;
    const app = document.getElementById("app");
    if (app) app.textContent = "A part of this page could not be loaded. It is tried again every second.";
    setTimeout(() => location.reload(), 1000);
  },
  true,
);
