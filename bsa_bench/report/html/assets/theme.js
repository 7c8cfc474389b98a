// Light or dark: as the system has it, unless the reader chose; on paper always light.
const theme = {
  chosen: "system",
  isPrinting: false,
  listeners: [],
  system: matchMedia("(prefers-color-scheme: dark)"),

  get isDark() {
    if (theme.isPrinting) return false;
    return theme.chosen === "system" ? theme.system.matches : theme.chosen === "dark";
  },

  apply() {
    document.documentElement.classList.toggle("dark", theme.isDark);
    for (const button of document.querySelectorAll(".switch button")) {
      button.setAttribute("aria-pressed", String(button.dataset.theme === theme.chosen));
    }
    for (const listener of theme.listeners) listener();
  },

  choose(name) {
    theme.chosen = name;
    try {
      localStorage.setItem("bsa-bench-theme", name);
    } catch {
      // A browser may keep nothing for a file.
    }
    theme.apply();
  },

  start() {
    try {
      const kept = localStorage.getItem("bsa-bench-theme");
      if (["light", "dark", "system"].includes(kept)) theme.chosen = kept;
    } catch {
      // As above.
    }
    theme.system.addEventListener("change", theme.apply);
    for (const button of document.querySelectorAll(".switch button")) {
      button.addEventListener("click", () => theme.choose(button.dataset.theme));
    }
    theme.apply();
  },

  colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  },
};
theme.start();
