import { memo } from "preact/compat";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { blocksOf, elementsOf } from "./harmless";

/** A text of the model. While it grows, only its last block is drawn again. */
export const Markdown = memo(function Markdown({ text }: { text: string }) {
    const blocks = useMemo(() => blocksOf(text), [text]);
    return (
        <div class="markdown">
            {blocks.map((block, index) => (
                <Block key={index} block={block} />
            ))}
        </div>
    );
});

const Block = memo(function Block({ block }: { block: string }) {
    const ref = useRef<HTMLDivElement>(null);
    useLayoutEffect(() => ref.current!.replaceChildren(elementsOf(block)), [block]);
    return <div class="block" ref={ref} />;
});
