// How this chat is answered, and what the page keeps.
import { useRef } from "preact/hooks";
import { keepConversation } from "../chat/keep";
import { conversations, current, notice } from "../chat/state";
import { exported, imported, saveAs } from "../chat/transfer";
import type { Settings } from "../store/records";
import { deleteAll } from "../table/delete";
import { texts } from "../texts";
import { Dialog } from "./Dialog";
import { Choice } from "./PictureDialog";
import { SettingsForm } from "./SettingsForm";
import { setTheme, theme, THEMES } from "./theme";
import { dialog, keeps } from "./ui";

export function SettingsDialog() {
    const { settings } = current.value;
    const change = (fields: Partial<Settings>) => {
        const next = { ...current.value, settings: { ...current.value.settings, ...fields } };
        if (next.leaf === null) current.value = next;
        else void keepConversation(next);
    };
    const close = () => {
        dialog.value = null;
    };
    return (
        <Dialog title={texts.settings.title} closeLabel={texts.settings.close} class="settings-dialog" onClose={close}>
            <section>
                <h3>{texts.settings.chat}</h3>
                <SettingsForm settings={settings} change={change} />
            </section>
            <section>
                <h3>{texts.settings.page}</h3>
                <Choice
                    name="theme"
                    legend={texts.settings.theme}
                    values={THEMES}
                    labels={texts.settings.themes}
                    value={theme.value}
                    onChange={setTheme}
                />
                <Data />
            </section>
        </Dialog>
    );
}

function Data() {
    const picker = useRef<HTMLInputElement>(null);
    const read = async (file: File | undefined) => {
        if (!file) return;
        try {
            notice.value = texts.settings.imported(await imported(await file.text()));
        } catch {
            notice.value = texts.errors.import;
        }
        dialog.value = null;
    };
    const save = async (all: boolean) => {
        const chosen = all ? conversations.value.filter((one) => !one.isPrivate) : [current.value];
        saveAs("pocketvlm-chats.json", "application/json", await exported(chosen));
    };
    return (
        <div class="data">
            <p class="hint">{keeps.value ? texts.settings.kept : texts.settings.notKept}</p>
            <div class="buttons start">
                {current.value.leaf !== null && (
                    <button type="button" class="button" onClick={() => void save(false)}>
                        {texts.settings.exportOne}
                    </button>
                )}
                <button
                    type="button"
                    class="button"
                    disabled={!conversations.value.length}
                    onClick={() => void save(true)}
                >
                    {texts.settings.export}
                </button>
                <button type="button" class="button" onClick={() => picker.current!.click()}>
                    {texts.settings.import}
                </button>
                <input
                    ref={picker}
                    type="file"
                    accept="application/json,.json"
                    hidden
                    aria-label={texts.settings.import}
                    onChange={(event) => void read(event.currentTarget.files?.[0])}
                />
                <button
                    type="button"
                    class="button danger"
                    onClick={() => {
                        if (!confirm(texts.settings.confirmDeleteAll)) return;
                        dialog.value = null;
                        void deleteAll();
                    }}
                >
                    {texts.settings.deleteAll}
                </button>
            </div>
        </div>
    );
}
