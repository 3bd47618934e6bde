// What a picture costs: how the model would see it, asked of the server and remembered.
import { useEffect, useState } from "preact/hooks";
import { planPicture } from "../server/api";
import { ServerError } from "../server/call";
import type { Plan } from "../server/types";
import type { Attachment } from "../store/records";

/** `tooSmall`: the model needs more tokens for a picture than it may take. */
export interface Planned {
    plan: Plan | null;
    tooSmall: boolean;
}

const NOT_KNOWN: Planned = { plan: null, tooSmall: false };
const plans = new Map<string, Promise<Planned>>();

/** Return the plan of a picture; none where it is not known, as for videos, or while it is asked. */
export function usePlan(model: string, attachment: Attachment | null): Planned {
    const [planned, setPlanned] = useState(NOT_KNOWN);
    const key = attachment?.width && attachment.kind !== "video" ? keyOf(model, attachment) : null;
    useEffect(() => {
        let wanted = true;
        if (key === null) setPlanned(NOT_KNOWN);
        else void planOf(key, model, attachment!).then((next) => wanted && setPlanned(next));
        return () => {
            wanted = false;
        };
    }, [key]);
    return planned;
}

function keyOf(model: string, { width, height, detail, budget }: Attachment): string {
    return JSON.stringify([model, width, height, detail, budget]);
}

function planOf(key: string, model: string, { width, height, detail, budget }: Attachment): Promise<Planned> {
    let planned = plans.get(key);
    if (!planned) {
        const question = { model, width: width!, height: height!, detail, max_image_tokens: budget };
        planned = planPicture(question).then(
            (plan) => ({ plan, tooSmall: false }),
            (error) => {
                if (error instanceof ServerError && error.param === "max_image_tokens") {
                    return { plan: null, tooSmall: true };
                }
                plans.delete(key); // the server may be away
                return NOT_KNOWN;
            },
        );
        plans.set(key, planned);
    }
    return planned;
}
