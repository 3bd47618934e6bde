// Numbers as people read them.

export function sizeText(bytes: number): string {
    if (bytes < 1000) return `${bytes} B`;
    const units = ["kB", "MB", "GB"];
    let value = bytes / 1000;
    let unit = 0;
    while (value >= 999.5 && unit < units.length - 1) {
        value /= 1000;
        unit++;
    }
    return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function pixels([width, height]: readonly [number, number]): string {
    return `${width}×${height}`;
}

const COUNT = new Intl.NumberFormat("en");

export function count(value: number): string {
    return COUNT.format(value);
}

export function seconds(ms: number): string {
    return ms < 9950 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;
}
