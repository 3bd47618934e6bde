// How to answer: model, system text, form, sampling. For a chat and for a table.
import type { Settings } from "../store/records";
import { texts } from "../texts";
import { SchemaEditor } from "./SchemaEditor";
import { modelFor, models } from "./ui";

interface Props {
    settings: Settings;
    change: (fields: Partial<Settings>) => void;
}

export function SettingsForm({ settings, change }: Props) {
    const model = modelFor(settings.model);
    return (
        <div class="settings-form">
            {models.value.length > 1 && (
                <label class="field">
                    <span>{texts.settings.model}</span>
                    <ModelSelect value={model?.id ?? ""} onChange={(id) => change({ model: id })} />
                </label>
            )}
            <label class="field">
                <span>{texts.settings.system}</span>
                <textarea
                    rows={3}
                    placeholder={texts.settings.systemPlaceholder}
                    value={settings.system}
                    onInput={(event) => change({ system: event.currentTarget.value })}
                />
            </label>
            <SchemaEditor schema={settings.schema} onChange={(schema) => change({ schema })} />
            <fieldset class="numbers">
                <legend>{texts.settings.sampling}</legend>
                <NumberField
                    label={texts.settings.temperature}
                    value={settings.temperature}
                    max={2}
                    step={0.1}
                    onChange={(temperature) => change({ temperature })}
                />
                <NumberField
                    label={texts.settings.topP}
                    value={settings.topP}
                    max={1}
                    step={0.05}
                    onChange={(topP) => change({ topP })}
                />
                <NumberField
                    label={texts.settings.maxTokens}
                    value={settings.maxTokens}
                    min={1}
                    step={1}
                    onChange={(maxTokens) => change({ maxTokens })}
                />
                <NumberField
                    label={texts.settings.seed}
                    value={settings.seed}
                    step={1}
                    onChange={(seed) => change({ seed })}
                />
            </fieldset>
            {model?.capabilities.includes("thinking") && (
                <label class="check">
                    <input
                        type="checkbox"
                        checked={settings.think}
                        onChange={(event) => change({ think: event.currentTarget.checked })}
                    />
                    {texts.settings.think}
                </label>
            )}
        </div>
    );
}

export function ModelSelect({ value, onChange }: { value: string; onChange: (id: string) => void }) {
    return (
        <select
            value={value}
            aria-label={texts.settings.model}
            onChange={(event) => onChange(event.currentTarget.value)}
        >
            {models.value.map((model) => (
                <option key={model.id} value={model.id}>
                    {model.id}
                </option>
            ))}
        </select>
    );
}

interface NumberProps {
    label: string;
    value: number | null;
    min?: number;
    max?: number;
    step: number;
    onChange: (value: number | null) => void;
}

function NumberField({ label, value, min = 0, max, step, onChange }: NumberProps) {
    return (
        <label class="field">
            <span>{label}</span>
            <input
                type="number"
                inputMode="decimal"
                min={min}
                max={max}
                step={step}
                placeholder={texts.settings.default}
                value={value ?? ""}
                onChange={(event) => {
                    const input = event.currentTarget;
                    const given = input.value === "" || !input.checkValidity() ? null : input.valueAsNumber;
                    if (given === null) input.value = "";
                    onChange(given);
                }}
            />
        </label>
    );
}
