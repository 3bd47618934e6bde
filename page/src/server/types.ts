// The parts of the server's answers that the page reads.
import type { Detail, Seen } from "../store/records";

export interface Model {
    id: string;
    context_length: number;
    capabilities: string[];
    status: { value: "loaded" | "loading" | "unloaded"; message?: string };
}

export interface Picture {
    id: string;
    width: number;
    height: number;
    bytes: number;
    pages: number;
}

/** How a model would see a picture of a size. */
export interface Plan {
    used_size: [number, number];
    canvas_size: [number, number];
    /** Columns and rows of tiles. */
    grid: [number, number];
    tiles: number;
    tokens: number;
}

export interface PlanQuestion {
    model: string;
    width: number;
    height: number;
    detail: Detail;
    max_image_tokens: number | null;
}

export interface Timings {
    images: Seen[];
    queue_ms: number;
    load_ms: number;
    prefill_ms: number;
    decode_tokens_per_second: number | null;
}

export interface Chunk {
    model: string;
    choices: { delta: { content?: string | null; reasoning_content?: string }; finish_reason: string | null }[];
    usage?: {
        prompt_tokens: number;
        completion_tokens: number;
        prompt_tokens_details: { cached_tokens: number };
    } | null;
    timings?: Timings;
    error?: { message: string; code: string | null };
}
