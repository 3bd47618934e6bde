// Light or dark: the system's, unless one is chosen. The style sheet has both colours of everything.
import { signal } from "@preact/signals";

export const THEMES = ["auto", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];
const KEY = "pocketvlm.theme";

export const theme = signal<Theme>("auto");

export function setTheme(next: Theme): void {
    theme.value = next;
    localStorage.setItem(KEY, next);
    document.documentElement.style.colorScheme = next === "auto" ? "light dark" : next;
}

export function restoreTheme(): void {
    const kept = localStorage.getItem(KEY);
    setTheme(THEMES.find((one) => one === kept) ?? "auto");
}
