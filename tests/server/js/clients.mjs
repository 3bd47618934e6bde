// One request by one client: node clients.mjs CLIENT URL PICTURE [stream]. Prints the answer's text, then the last
// chunk or the whole answer as JSON on a line of its own.

import { InferenceClient } from "@huggingface/inference";
import { OpenAI } from "openai";

const [name, url, picture, streamed] = process.argv.slice(2);
const messages = [
	{
		role: "user",
		content: [
			{ type: "text", text: "How many shapes are there?" },
			{ type: "image_url", image_url: { url: picture } },
		],
	},
];

const clients = {
	openai: {
		whole: () => new OpenAI({ baseURL: url, apiKey: "none" }).chat.completions.create({ model: "iota", messages }),
		stream: () =>
			new OpenAI({ baseURL: url, apiKey: "none" }).chat.completions.create({ model: "iota", messages, stream: true }),
	},
	huggingface: {
		whole: () =>
			new InferenceClient("hf_none").chatCompletion({ endpointUrl: url, model: "iota", messages }),
		stream: () =>
			new InferenceClient("hf_none").chatCompletionStream({ endpointUrl: url, model: "iota", messages }),
	},
	fetch: {
		whole: async () => {
			const response = await fetch(`${url}/chat/completions`, {
				method: "POST",
				headers: { Authorization: "Bearer none", "Content-Type": "application/json" },
				body: JSON.stringify({ model: "iota", messages }),
			});
			return response.json();
		},
	},
};

let text = "";
let last;
if (streamed) {
	for await (const chunk of await clients[name].stream()) {
		text += chunk.choices[0].delta.content;
		last = chunk;
	}
} else {
	last = await clients[name].whole();
	text = last.choices[0].message.content;
}
console.log(text);
console.log(JSON.stringify(last));
