// Asks for the server's key.
import { useState } from "preact/hooks";
import { keyWanted, useKey } from "../server/call";
import { texts } from "../texts";

export function KeyDialog({ onKey }: { onKey: () => void }) {
    const [key, setKey] = useState("");
    return (
        <main class="key">
            <form
                onSubmit={(event) => {
                    event.preventDefault();
                    useKey(key.trim());
                    onKey();
                }}
            >
                <h1>{texts.key.title}</h1>
                <p>{texts.key.lead}</p>
                {keyWanted.value === "wrong" && (
                    <p class="failure" role="alert">
                        {texts.key.wrong}
                    </p>
                )}
                <label class="field">
                    <span>{texts.key.label}</span>
                    <input
                        type="password"
                        autocomplete="off"
                        autofocus
                        required
                        value={key}
                        onInput={(event) => setKey(event.currentTarget.value)}
                    />
                </label>
                <button type="submit" class="button primary" disabled={!key.trim()}>
                    {texts.key.go}
                </button>
            </form>
        </main>
    );
}
