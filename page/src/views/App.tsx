// The page: the list of chats, the open chat or table, dialogs, and files that are dropped or pasted anywhere.
import { useEffect, useState } from "preact/hooks";
import { keepConversation, open, startConversation } from "../chat/keep";
import { announcement, conversations, current, notice } from "../chat/state";
import { attach } from "../pictures/attach";
import { isReachable, keyWanted } from "../server/call";
import { texts } from "../texts";
import { CameraDialog } from "./CameraDialog";
import { Composer } from "./Composer";
import { Icon, IconButton } from "./Icon";
import { KeyDialog } from "./KeyDialog";
import { PictureDialog } from "./PictureDialog";
import { SettingsDialog } from "./SettingsDialog";
import { ModelSelect } from "./SettingsForm";
import { Sidebar } from "./Sidebar";
import { addRows, TableView } from "./TableView";
import { Thread } from "./Thread";
import { dialog, modelFor, models, sidebarOpen, table } from "./ui";

export function App({ onKey }: { onKey: () => void }) {
    const dragging = useFiles();
    useHash();
    if (keyWanted.value) return <KeyDialog onKey={onKey} />;
    return (
        <div class="page">
            <OpenDialog />
            <Sidebar />
            {sidebarOpen.value && (
                <div
                    class="shade"
                    onClick={() => {
                        sidebarOpen.value = false;
                    }}
                />
            )}
            <main class={dragging ? "dragging" : ""}>
                <Head />
                <Notices />
                {table.value ? (
                    <TableView table={table.value} />
                ) : (
                    <>
                        <Thread />
                        <Composer />
                    </>
                )}
                {dragging && <div class="drop">{texts.composer.drop}</div>}
            </main>
            <div class="visually-hidden" role="status" aria-live="polite">
                {announcement.value}
            </div>
        </div>
    );
}

function Head() {
    const { title, isPrivate, settings } = current.value;
    const model = modelFor(settings.model)?.id ?? "";
    return (
        <header class="head">
            <IconButton
                icon="menu"
                class="only-narrow"
                label={texts.sidebar.open}
                onClick={() => {
                    sidebarOpen.value = true;
                }}
            />
            <span class="head-title">
                {isPrivate && !table.value && (
                    <span class="badge">
                        <Icon name="lock" /> {texts.sidebar.private}
                    </span>
                )}
                {table.value ? texts.table.title : title}
            </span>
            {models.value.length > 1 && !table.value ? (
                <ModelSelect value={model} onChange={chooseModel} />
            ) : (
                <span class="head-model">{model}</span>
            )}
            <IconButton
                icon="settings"
                label={texts.settings.open}
                onClick={() => {
                    dialog.value = { kind: "settings" };
                }}
            />
        </header>
    );
}

function chooseModel(model: string): void {
    const next = { ...current.value, settings: { ...current.value.settings, model } };
    if (next.leaf === null) current.value = next;
    else void keepConversation(next);
}

function OpenDialog() {
    switch (dialog.value?.kind) {
        case "settings":
            return <SettingsDialog />;
        case "camera":
            return <CameraDialog />;
        case "picture":
            return <PictureDialog attachment={dialog.value.attachment} change={dialog.value.change} />;
        default:
            return null;
    }
}

function Notices() {
    const text = isReachable.value ? notice.value : texts.errors.gone;
    if (!text) return null;
    return (
        <p class={`notice ${isReachable.value ? "" : "gone"}`} role="alert">
            <span>{text}</span>
            {isReachable.value && (
                <IconButton
                    icon="close"
                    label={texts.settings.close}
                    onClick={() => {
                        notice.value = "";
                    }}
                />
            )}
        </p>
    );
}

/** Take files that are dropped or pasted anywhere. Returns whether some are being dragged over the page. */
function useFiles(): boolean {
    const [dragging, setDragging] = useState(false);
    useEffect(() => {
        const take = (files: FileList | File[]) => {
            if (table.value) void addRows([...files]);
            else void attach([...files]);
        };
        const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
        const over = (event: DragEvent) => {
            if (!hasFiles(event)) return;
            event.preventDefault();
            setDragging(true);
        };
        const leave = (event: DragEvent) => event.relatedTarget === null && setDragging(false);
        const drop = (event: DragEvent) => {
            setDragging(false);
            if (!hasFiles(event)) return;
            event.preventDefault(); // the browser would open the file in place of the page
            take(event.dataTransfer!.files);
        };
        const paste = (event: ClipboardEvent) => {
            const files = event.clipboardData?.files;
            if (!files?.length) return;
            event.preventDefault();
            take(files);
        };
        document.addEventListener("dragover", over);
        document.addEventListener("dragleave", leave);
        document.addEventListener("drop", drop);
        document.addEventListener("paste", paste);
        return () => {
            document.removeEventListener("dragover", over);
            document.removeEventListener("dragleave", leave);
            document.removeEventListener("drop", drop);
            document.removeEventListener("paste", paste);
        };
    }, []);
    return dragging;
}

/** Follow the browser's back and forward. */
function useHash(): void {
    useEffect(() => {
        const follow = () => {
            const id = location.hash.slice(1);
            if (id === current.value.id) return;
            const conversation = conversations.value.find((one) => one.id === id);
            table.value = null;
            if (conversation) void open(conversation);
            else startConversation(false);
        };
        addEventListener("popstate", follow);
        return () => removeEventListener("popstate", follow);
    }, []);
}
