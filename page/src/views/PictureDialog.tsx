// A picture as the model sees it: its pixels, its tiles, and what it costs; before sending, with a choice of detail.
import { useEffect, useState } from "preact/hooks";
import { fileOf } from "../chat/keep";
import { current } from "../chat/state";
import { useBlobUrl } from "../pictures/blobs";
import { usePlan } from "../pictures/cost";
import { pixels } from "../pictures/format";
import { pictureCount } from "../pictures/pages";
import { withFiles } from "../pictures/resend";
import { seenPicture } from "../server/api";
import type { Plan } from "../server/types";
import type { Attachment, Detail } from "../store/records";
import { texts } from "../texts";
import { Dialog } from "./Dialog";
import { PageChooser } from "./PageChooser";
import { factsOf, Thumbnail } from "./Thumbnail";
import { dialog, modelFor } from "./ui";

// Tokens to choose from; the last one stands for no limit.
const BUDGETS = [64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, null];
const DETAILS: Detail[] = ["low", "auto", "high"];

interface Props {
    attachment: Attachment;
    change: ((attachment: Attachment) => void) | null;
}

export function PictureDialog({ attachment: given, change }: Props) {
    const [attachment, setAttachment] = useState(given);
    const [view, setView] = useState<Side>("seen");
    const [tiles, setTiles] = useState(true);
    const model = modelFor(current.value.settings.model);
    const { plan, tooSmall } = usePlan(model?.id ?? "", attachment);
    const set = (fields: Partial<Attachment>) => {
        const next = { ...attachment, ...fields };
        setAttachment(next);
        change?.(next);
    };
    const close = () => {
        dialog.value = null;
    };
    return (
        <Dialog title={texts.seen.title} closeLabel={texts.seen.close} class="picture-dialog" onClose={close}>
            <div class="picture-layout">
                {attachment.kind === "document" ? (
                    <PageChooser
                        attachment={attachment}
                        model={model?.id ?? ""}
                        onChange={change && ((pages) => set({ pages }))}
                    />
                ) : (
                    <div class="stage-column">
                        <Stage attachment={attachment} plan={plan} view={view} tiles={tiles} model={model?.id ?? ""} />
                        {attachment.kind === "picture" && (
                            <View view={view} setView={setView} tiles={tiles} setTiles={setTiles} />
                        )}
                    </div>
                )}
                <div class="picture-facts">
                    <p class="picture-name">
                        <strong>{attachment.name}</strong>
                        <span>{factsOf(attachment)}</span>
                    </p>
                    <Cost
                        plan={plan}
                        tooSmall={tooSmall}
                        attachment={attachment}
                        context={model?.context_length ?? null}
                    />
                    {change && attachment.kind === "video" && <Frames attachment={attachment} set={set} />}
                    {change && <Options attachment={attachment} set={set} />}
                </div>
            </div>
        </Dialog>
    );
}

type Side = "seen" | "original";

interface ViewProps {
    view: Side;
    setView: (view: Side) => void;
    tiles: boolean;
    setTiles: (tiles: boolean) => void;
}

/** What is shown of the picture; it changes nothing for the model. */
function View({ view, setView, tiles, setTiles }: ViewProps) {
    return (
        <div class="stage-view">
            <Choice
                name="view"
                legend={texts.seen.view}
                hideLegend
                values={["seen", "original"] as const}
                labels={{ seen: texts.seen.asSeen, original: texts.seen.original }}
                value={view}
                onChange={setView}
            />
            <label class="check">
                <input type="checkbox" checked={tiles} onChange={(event) => setTiles(event.currentTarget.checked)} />
                {texts.seen.grid}
            </label>
        </div>
    );
}

interface StageProps {
    attachment: Attachment;
    plan: Plan | null;
    view: Side;
    tiles: boolean;
    model: string;
}

function Stage({ attachment, plan, view, tiles, model }: StageProps) {
    const seen = useSeen(model, view === "seen" ? attachment : null);
    const original = useOriginal(view === "original" ? attachment.id : null);
    const blob = view === "seen" ? seen : original;
    const url = useBlobUrl(blob);
    const size =
        view === "seen" && plan ? plan.canvas_size : ([attachment.width ?? 1, attachment.height ?? 1] as const);
    return (
        <div class="stage">
            <figure style={{ "--ratio": `${size[0]} / ${size[1]}`, "--width": `${size[0]}px` }}>
                {url ? (
                    <img src={url} alt={`${attachment.name}, ${pixels(size)}`} width={size[0]} height={size[1]} />
                ) : (
                    <Thumbnail attachment={attachment} />
                )}
                {tiles && plan && <Grid plan={plan} />}
                {view === "seen" && plan && <figcaption>{pixels(plan.used_size)}</figcaption>}
            </figure>
        </div>
    );
}

function Grid({ plan }: { plan: Plan }) {
    const [columns, rows] = plan.grid;
    const lines = [
        ...Array.from({ length: columns - 1 }, (_, at) => `M${((at + 1) / columns) * 100} 0V100`),
        ...Array.from({ length: rows - 1 }, (_, at) => `M0 ${((at + 1) / rows) * 100}H100`),
    ];
    return (
        <svg class="grid" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
            <path class="under" d={`M0 0H100V100H0Z${lines.join("")}`} />
            <path class="over" d={`M0 0H100V100H0Z${lines.join("")}`} />
        </svg>
    );
}

interface CostProps {
    plan: Plan | null;
    tooSmall: boolean;
    attachment: Attachment;
    context: number | null;
}

function Cost({ plan, tooSmall, attachment, context }: CostProps) {
    const { width, height } = attachment;
    const pictures = pictureCount(attachment);
    if (attachment.kind === "video") return null; // the server plans pictures only
    if (!plan || !width || !height)
        return <p class="cost-line">{tooSmall ? texts.seen.tooSmall : texts.seen.unknown}</p>;
    const share = context ? texts.seen.ofContext((100 * plan.tokens * pictures) / context) : null;
    const tokens =
        pictures > 1 ? texts.pages.each(pictures, plan.tokens) : texts.seen.tokens(plan.tokens, attachment.kind);
    return (
        <p class="cost-line" role="status">
            <strong>{texts.seen.line(plan.used_size, [width, height])}</strong>
            <span>
                {texts.seen.tiles(plan.tiles)}, {tokens}
                {share && `, ${share}`}
            </span>
        </p>
    );
}

function Frames({ attachment, set }: { attachment: Attachment; set: (fields: Partial<Attachment>) => void }) {
    return (
        <label class="field">
            <span>{texts.pages.framesLabel}</span>
            <input
                type="number"
                min={1}
                max={100}
                value={pictureCount(attachment)}
                onChange={(event) => {
                    const input = event.currentTarget;
                    if (input.value && input.checkValidity()) set({ frames: input.valueAsNumber });
                    else input.value = String(pictureCount(attachment));
                }}
            />
        </label>
    );
}

function Options({ attachment, set }: { attachment: Attachment; set: (fields: Partial<Attachment>) => void }) {
    const at = BUDGETS.indexOf(attachment.budget);
    const budget = attachment.budget === null ? texts.seen.noBudget : String(attachment.budget);
    return (
        <>
            <Choice
                name="detail"
                legend={texts.seen.detail}
                values={DETAILS}
                labels={texts.seen.details}
                value={attachment.detail}
                onChange={(detail) => set({ detail })}
            />
            <p class="hint">{texts.seen.detailHints[attachment.detail]}</p>
            <label class="slider">
                <span>
                    {texts.seen.budget} <output>{budget}</output>
                </span>
                <input
                    type="range"
                    min={0}
                    max={BUDGETS.length - 1}
                    value={at < 0 ? BUDGETS.length - 1 : at}
                    aria-valuetext={budget}
                    onInput={(event) => set({ budget: BUDGETS[Number(event.currentTarget.value)] ?? null })}
                />
            </label>
        </>
    );
}

interface ChoiceProps<T extends string> {
    name: string;
    legend: string;
    hideLegend?: boolean;
    values: readonly T[];
    labels: Record<T, string>;
    value: T;
    onChange: (value: T) => void;
}

/** A few values of which one holds. */
export function Choice<T extends string>({
    name,
    legend,
    hideLegend,
    values,
    labels,
    value,
    onChange,
}: ChoiceProps<T>) {
    return (
        <fieldset class="choice">
            <legend class={hideLegend ? "visually-hidden" : ""}>{legend}</legend>
            <div class="segments">
                {values.map((one) => (
                    <label key={one} class={one === value ? "chosen" : ""}>
                        <input type="radio" name={name} checked={one === value} onChange={() => onChange(one)} />
                        {labels[one]}
                    </label>
                ))}
            </div>
        </fieldset>
    );
}

function useSeen(model: string, attachment: Attachment | null): Blob | null {
    const [blob, setBlob] = useState<Blob | null>(null);
    const { id, detail, budget } = attachment ?? {};
    useEffect(() => {
        if (!attachment) return;
        const abort = new AbortController();
        const draw = () => seenPicture(model, attachment, 1, abort.signal);
        withFiles([attachment.id], abort.signal, draw).then(setBlob, () => undefined);
        return () => abort.abort();
    }, [model, id, detail, budget]);
    return blob;
}

function useOriginal(id: string | null): Blob | null {
    const [blob, setBlob] = useState<Blob | null>(null);
    useEffect(() => {
        if (id !== null) void fileOf(id).then((file) => setBlob(file?.blob ?? null));
    }, [id]);
    return blob;
}
