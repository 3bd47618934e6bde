// What a file is, by its type and name. The server decides what it can read.
import type { Kind } from "../store/records";

const VIDEO = /\.(mp4|m4v|mov|mkv|webm|avi|ts)$/i;
/** For the file picker: what the server reads. */
export const ACCEPT = "image/*,.heic,.heif,.avif,.tif,.tiff,.bmp,application/pdf,video/*,.mkv,.avi";

export function kindOf(file: File): Kind {
    if (file.type === "application/pdf" || /\.pdf$/i.test(file.name)) return "document";
    if (file.type.startsWith("video/") || VIDEO.test(file.name)) return "video";
    return "picture";
}
