// What a picture costs: how the model would see it, asked of the server and remembered.
import { useEffect, useState } from "preact/hooks";
import { planPicture } from "../server/api";
import type { Plan } from "../server/types";
import type { Attachment } from "../store/records";

const plans = new Map<string, Promise<Plan | null>>();

/** Return the plan of a picture; null where it is not known, as for videos, or while it is asked. */
export function usePlan(model: string, attachment: Attachment | null): Plan | null {
    const [plan, setPlan] = useState<Plan | null>(null);
    const key = attachment?.width && attachment.kind !== "video" ? keyOf(model, attachment) : null;
    useEffect(() => {
        let wanted = true;
        if (key === null) setPlan(null);
        else void planOf(key, model, attachment!).then((found) => wanted && setPlan(found));
        return () => {
            wanted = false;
        };
    }, [key]);
    return plan;
}

function keyOf(model: string, { width, height, detail, budget }: Attachment): string {
    return JSON.stringify([model, width, height, detail, budget]);
}

function planOf(key: string, model: string, { width, height, detail, budget }: Attachment): Promise<Plan | null> {
    let plan = plans.get(key);
    if (!plan) {
        const question = { model, width: width!, height: height!, detail, max_image_tokens: budget };
        plan = planPicture(question).catch(() => null);
        plans.set(key, plan);
        void plan.then((found) => found ?? plans.delete(key));
    }
    return plan;
}
