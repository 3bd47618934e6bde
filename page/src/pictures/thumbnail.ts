// Small pictures of files, drawn by the browser. Large ones would be decoded again with every scroll.

const EDGE = 512; // pixels of the longer side: sharp at twice the size of a thumbnail

/** Return a small picture of a file; null where the browser cannot read it. */
export async function thumbnailOf(file: Blob): Promise<Blob | null> {
    try {
        const bitmap = await createImageBitmap(file);
        const scale = Math.min(1, EDGE / Math.max(bitmap.width, bitmap.height));
        const width = Math.max(1, Math.round(bitmap.width * scale));
        const height = Math.max(1, Math.round(bitmap.height * scale));
        const canvas = new OffscreenCanvas(width, height);
        const context = canvas.getContext("2d")!;
        context.imageSmoothingQuality = "high";
        context.drawImage(bitmap, 0, 0, width, height);
        bitmap.close();
        return await canvas.convertToBlob({ type: "image/webp", quality: 0.85 });
    } catch {
        return null;
    }
}
