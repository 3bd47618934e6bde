// One way to call the server: with the key, and with errors that a person can read.
import { signal } from "@preact/signals";
import { texts } from "../texts";

const KEY = "pocketvlm.key";

export class ServerError extends Error {
    constructor(
        message: string,
        readonly status: number,
        readonly code: string | null = null,
        /** The field of the request that is wrong. */
        readonly param: string | null = null,
    ) {
        super(message);
    }
}

/** The server did not answer at all, or stopped in the middle. */
export class UnreachableError extends Error {}

export const isReachable = signal(true);
/** Why the page asks for a key; null while it need not. */
export const keyWanted = signal<"first" | "wrong" | null>(null);

/** Keep the key for this tab's session only. */
export function useKey(key: string): void {
    sessionStorage.setItem(KEY, key);
    keyWanted.value = null;
}

export async function call(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    const key = sessionStorage.getItem(KEY);
    try {
        if (key) headers.set("authorization", `Bearer ${key}`);
    } catch {
        // It has a character that no header can have.
        sessionStorage.removeItem(KEY);
        keyWanted.value = "wrong";
        throw new ServerError(texts.key.wrong, 401);
    }
    let response: Response;
    try {
        response = await fetch(path, { ...init, headers, credentials: "omit", cache: "no-store" });
    } catch (error) {
        if (init.signal?.aborted) throw error;
        lost();
        throw new UnreachableError(texts.errors.unreachable);
    }
    isReachable.value = true;
    if (response.ok) return response;
    if (response.status === 401) keyWanted.value = key ? "wrong" : "first";
    const error = await response.json().then(
        (body) => body?.error,
        () => null,
    );
    const message = typeof error?.message === "string" ? error.message : texts.errors.status(response.status);
    throw new ServerError(message, response.status, error?.code ?? null, error?.param ?? null);
}

export async function callJson<T>(path: string, init?: RequestInit): Promise<T> {
    return (await call(path, init)).json() as Promise<T>;
}

export function post(body: unknown, signal?: AbortSignal): RequestInit {
    return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal };
}

/** Note that the server is gone, and ask until it is back. */
export function lost(): void {
    if (!isReachable.value) return;
    isReachable.value = false;
    const ask = async () => {
        try {
            await fetch("health", { cache: "no-store" });
            isReachable.value = true;
        } catch {
            setTimeout(ask, 1500);
        }
    };
    setTimeout(ask, 1500);
}
