// The form of an answer: free text, a few named fields, or a JSON Schema.
import { useState } from "preact/hooks";
import { type Field, FIELD_TYPES, fieldsOf, schemaOf } from "../chat/schema";
import { parsedSchema } from "../chat/request";
import { texts } from "../texts";
import { Icon, IconButton } from "./Icon";
import { Choice } from "./PictureDialog";

const FORMS = ["free", "fields", "schema"] as const;
type Form = (typeof FORMS)[number];
const LABELS = {
    free: texts.settings.freeText,
    fields: texts.settings.fields,
    schema: texts.settings.schemaText,
};

interface Props {
    schema: string;
    onChange: (schema: string) => void;
}

export function SchemaEditor({ schema, onChange }: Props) {
    const [form, setForm] = useState<Form>(() => (!schema.trim() ? "free" : fieldsOf(schema) ? "fields" : "schema"));
    const [fields, setFields] = useState<Field[]>(() => fieldsOf(schema) ?? []);
    const choose = (next: Form) => {
        setForm(next);
        if (next === "free") onChange("");
        if (next === "fields") {
            const known = fieldsOf(schema) ?? [];
            setFields(known.length ? known : [{ name: "", type: "string", choices: "" }]);
        }
    };
    const change = (next: Field[]) => {
        setFields(next);
        onChange(schemaOf(next));
    };
    return (
        <div class="schema">
            <Choice
                name="form"
                legend={texts.settings.form}
                values={FORMS}
                labels={LABELS}
                value={form}
                onChange={choose}
            />
            {form === "fields" && <Fields fields={fields} change={change} />}
            {form === "schema" && <SchemaText schema={schema} onChange={onChange} />}
        </div>
    );
}

function Fields({ fields, change }: { fields: Field[]; change: (fields: Field[]) => void }) {
    const set = (at: number, values: Partial<Field>) =>
        change(fields.map((field, index) => (index === at ? { ...field, ...values } : field)));
    return (
        <div class="schema-fields">
            {fields.map((field, at) => (
                <div class="schema-field" key={at}>
                    <input
                        aria-label={texts.schema.field}
                        placeholder={texts.schema.field}
                        value={field.name}
                        onInput={(event) => set(at, { name: event.currentTarget.value })}
                    />
                    <select
                        aria-label={texts.schema.type}
                        value={field.type}
                        onChange={(event) => set(at, { type: event.currentTarget.value as Field["type"] })}
                    >
                        {FIELD_TYPES.map((type) => (
                            <option key={type} value={type}>
                                {texts.schema.types[type]}
                            </option>
                        ))}
                    </select>
                    <IconButton
                        icon="close"
                        label={texts.schema.remove(field.name)}
                        onClick={() => change(fields.filter((_, index) => index !== at))}
                    />
                    {field.type === "enum" && (
                        <input
                            class="choices"
                            aria-label={texts.schema.options}
                            placeholder={texts.schema.options}
                            value={field.choices}
                            onInput={(event) => set(at, { choices: event.currentTarget.value })}
                        />
                    )}
                </div>
            ))}
            <button
                type="button"
                class="button quiet"
                onClick={() => change([...fields, { name: "", type: "string", choices: "" }])}
            >
                <Icon name="plus" /> {texts.schema.add}
            </button>
        </div>
    );
}

function SchemaText({ schema, onChange }: Props) {
    const error = faultOf(schema);
    return (
        <label class="field">
            <textarea
                class="code"
                rows={8}
                spellcheck={false}
                aria-label={texts.settings.schemaText}
                aria-invalid={error !== ""}
                value={schema}
                onInput={(event) => onChange(event.currentTarget.value)}
            />
            {error && <span class="failure">{error}</span>}
        </label>
    );
}

function faultOf(schema: string): string {
    if (!schema.trim()) return "";
    try {
        parsedSchema(schema);
        return "";
    } catch (error) {
        return (error as Error).message;
    }
}
