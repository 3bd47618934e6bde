import { render } from "preact";
import { forgetPrivateFiles, openLast, openStore } from "./chat/keep";
import { notice } from "./chat/state";
import { listModels } from "./server/api";
import { isReachable } from "./server/call";
import { loadTables } from "./table/keep";
import { resumeTables } from "./table/run";
import { texts } from "./texts";
import { App } from "./views/App";
import { restoreTheme } from "./views/theme";
import { keeps, models } from "./views/ui";

let keptIsOpen = false;

async function greet(): Promise<void> {
    try {
        models.value = await listModels();
        if (keptIsOpen) resumeTables();
    } catch {
        // The page asks for the key, or waits for the server.
    }
}

async function start(): Promise<void> {
    restoreTheme();
    const greeting = greet();
    keeps.value = await openStore();
    await Promise.all([openLast(), loadTables()]);
    keptIsOpen = true;
    render(<App onKey={() => void greet()} />, document.getElementById("app")!);
    addEventListener("pagehide", forgetPrivateFiles);
    addEventListener("unhandledrejection", (event) => {
        const full = event.reason instanceof DOMException && event.reason.name === "QuotaExceededError";
        notice.value = full ? texts.errors.full : String(event.reason?.message ?? event.reason);
    });
    await greeting;
    if (models.value.length) resumeTables();
    isReachable.subscribe((reachable) => {
        if (reachable && !models.value.length) void greet();
    });
}

void start();
