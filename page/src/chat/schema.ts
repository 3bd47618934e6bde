// A JSON Schema as a list of fields, as far as it is no more than that.

export const FIELD_TYPES = ["string", "number", "integer", "boolean", "enum", "list"] as const;
export type FieldType = (typeof FIELD_TYPES)[number];

export interface Field {
    name: string;
    type: FieldType;
    /** Of an enum. */
    choices: string;
}

type Json = Record<string, unknown>;

export function schemaOf(fields: Field[]): string {
    const named = fields.filter((field) => field.name.trim());
    if (!named.length) return "";
    const properties = Object.fromEntries(named.map((field) => [field.name.trim(), valueSchema(field)]));
    const required = Object.keys(properties);
    return JSON.stringify({ type: "object", properties, required, additionalProperties: false }, null, 2);
}

function valueSchema({ type, choices }: Field): Json {
    if (type === "list") return { type: "array", items: { type: "string" } };
    if (type !== "enum") return { type };
    const values = choices.split(",").map((choice) => choice.trim());
    return { enum: [...new Set(values.filter(Boolean))] };
}

/** Return the fields of a schema; null where it says more than fields can. */
export function fieldsOf(schema: string): Field[] | null {
    if (!schema.trim()) return [];
    let fields: Field[];
    try {
        const { properties } = JSON.parse(schema) as { properties: Record<string, Json> };
        fields = Object.entries(properties).map(([name, value]) => fieldOf(name, value));
        const again = JSON.stringify(JSON.parse(schemaOf(fields)));
        return again === JSON.stringify(JSON.parse(schema)) ? fields : null;
    } catch {
        return null;
    }
}

function fieldOf(name: string, value: Json): Field {
    if (Array.isArray(value.enum)) return { name, type: "enum", choices: value.enum.join(", ") };
    const type = value.type === "array" ? "list" : (value.type as FieldType);
    return { name, type, choices: "" };
}

/** Return the names of the fields of an answer that follows a schema; none where it has no fields. */
export function columnsOf(schema: string): string[] {
    try {
        const { properties } = JSON.parse(schema) as { properties?: Json };
        return Object.keys(properties ?? {});
    } catch {
        return [];
    }
}
