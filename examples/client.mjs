// Ask a server that `pocketvlm serve` started: npm install openai; node examples/client.mjs [PICTURE [URL]]

import { readFile } from "node:fs/promises";
import { OpenAI } from "openai";

const [picture = "docs/sample.png", url = "http://127.0.0.1:8080/v1"] = process.argv.slice(2);

const client = new OpenAI({ baseURL: url, apiKey: "none" }); // with --api-key, the server's key
const uri = "data:image/png;base64," + (await readFile(picture)).toString("base64");
const content = [
  { type: "image_url", image_url: { url: uri } },
  { type: "text", text: "What is in the picture?" },
];
const stream = await client.chat.completions.create({
  model: "iota",
  messages: [{ role: "user", content }],
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0].delta.content);
console.log();
