// A picture from the camera, where the browser lets the page have one.
import { useEffect, useRef, useState } from "preact/hooks";
import { attach } from "../pictures/attach";
import { texts } from "../texts";
import { Dialog } from "./Dialog";
import { Icon } from "./Icon";
import { dialog } from "./ui";

export function CameraDialog() {
    const video = useRef<HTMLVideoElement>(null);
    const [refused, setRefused] = useState(false);
    const [ready, setReady] = useState(false);
    useEffect(() => {
        let closed = false;
        let stream: MediaStream | null = null;
        const wanted = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } };
        navigator.mediaDevices.getUserMedia({ video: wanted }).then(
            (given) => {
                stream = given;
                if (closed) stop(given);
                else video.current!.srcObject = given;
            },
            () => setRefused(true),
        );
        return () => {
            closed = true;
            if (stream) stop(stream);
        };
    }, []);
    const close = () => {
        dialog.value = null;
    };
    const take = async () => {
        const { videoWidth: width, videoHeight: height } = video.current!;
        const canvas = new OffscreenCanvas(width, height);
        canvas.getContext("2d")!.drawImage(video.current!, 0, 0);
        const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
        void attach([new File([blob], texts.camera.name, { type: blob.type })]);
        close();
    };
    return (
        <Dialog title={texts.camera.title} closeLabel={texts.camera.close} class="camera-dialog" onClose={close}>
            {refused ? (
                <p role="alert">{texts.camera.refused}</p>
            ) : (
                <>
                    <video ref={video} autoplay muted playsInline onLoadedData={() => setReady(true)} />
                    <div class="buttons">
                        <button type="button" class="button primary" disabled={!ready} onClick={() => void take()}>
                            <Icon name="camera" /> {texts.camera.take}
                        </button>
                    </div>
                </>
            )}
        </Dialog>
    );
}

function stop(stream: MediaStream): void {
    for (const track of stream.getTracks()) track.stop();
}
