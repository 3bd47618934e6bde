// Ask a running server through the clients from npm: node checks.mjs URL PICTURE [CLIENT...].
//
// Prints a line for each client: its version and what worked. See checks.py for what is compared.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { InferenceClient } from "@huggingface/inference";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, path, ...names] = process.argv.slice(2);
const picture = readFileSync(path);
const uri = `data:image/png;base64,${picture.toString("base64")}`;
const COUNT = "How many shapes are there?";
const ANSWER = "2";
const COLOUR = "What colour is the circle?";
const RED = "Red";
const Shape = z.object({ colour: z.enum(["red", "green", "blue"]), number: z.int().min(0).max(9) });
const paint = {
	type: "function",
	function: {
		name: "paint",
		description: "Paint the circle in this colour.",
		parameters: {
			type: "object",
			properties: { colour: { type: "string", enum: ["red", "green", "blue"] } },
			required: ["colour"],
			additionalProperties: false,
		},
	},
};
const painter = ({ colour }) => `painted ${colour}`;
const first = [
	{
		role: "user",
		content: [
			{ type: "text", text: COUNT },
			{ type: "image_url", image_url: { url: uri } },
		],
	},
];
const more = { role: "user", content: COLOUR };

async function* openai() {
	const { completions } = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 }).chat;
	const ask = { model: "iota", messages: first };
	const { message } = (await completions.create(ask)).choices[0];
	assert.equal(message.content, ANSWER);
	const again = async (earlier) => {
		const answer = await completions.create({ ...ask, messages: [...first, earlier, more] });
		return answer.choices[0].message.content;
	};
	assert.equal(await again(message), RED);
	yield "chat, second turn";
	const streamed = await completions.stream(ask).finalMessage();
	assert.deepEqual([streamed.role, streamed.content], ["assistant", ANSWER]);
	assert.equal(await again(streamed), RED);
	yield "stream helper, its message sent back";
	const whole = await completions.parse({ ...ask, response_format: zodResponseFormat(Shape, "shape") });
	const parsed = whole.choices[0].message;
	Shape.parse(parsed.parsed);
	await again(parsed);
	yield "parse, its message sent back";
	const runner = completions.runTools({
		...ask,
		tools: [{ ...paint, function: { ...paint.function, parse: JSON.parse, function: painter } }],
		tool_choice: { type: "function", function: { name: "paint" } },
	});
	assert.match(await runner.finalFunctionToolCallResult(), /^painted /);
	yield "runTools";
}

async function* responses() {
	const { responses } = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
	const content = [
		{ type: "input_text", text: COUNT },
		{ type: "input_image", image_url: uri, detail: "auto" },
	];
	const input = [{ role: "user", content }];
	const ask = { model: "iota", input };
	const answer = await responses.create(ask);
	assert.equal(answer.output_text, ANSWER);
	const again = await responses.create({ ...ask, input: [...input, ...answer.output, more] });
	assert.equal(again.output_text, RED);
	const next = await responses.create({ model: "iota", input: COLOUR, previous_response_id: answer.id });
	assert.equal(next.output_text, RED);
	yield "responses: its output sent back, previous_response_id";
	const stream = responses.stream(ask);
	let text = "";
	for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
	assert.deepEqual([text, (await stream.finalResponse()).output_text], [ANSWER, ANSWER]);
	yield "stream helper";
	Shape.parse((await responses.parse({ ...ask, text: { format: zodTextFormat(Shape, "shape") } })).output_parsed);
	yield "parse";
	const tools = [{ type: "function", strict: true, ...paint.function }];
	const called = await responses.create({ ...ask, tools, tool_choice: "required" });
	const { call_id, name } = called.output.find((item) => item.type === "function_call");
	assert.equal(name, "paint");
	const result = { type: "function_call_output", call_id, output: "painted" };
	await responses.create({ ...ask, input: [...input, ...called.output, result], tools, max_output_tokens: 5 });
	yield "tool call and its result";
	assert.equal((await responses.retrieve(answer.id)).output_text, ANSWER);
	await responses.delete(answer.id);
	await assert.rejects(responses.retrieve(answer.id), OpenAI.NotFoundError);
	yield "retrieve, delete";
}

async function* huggingface() {
	const client = new InferenceClient("none", { endpointUrl: url });
	const ask = { model: "iota", messages: first };
	const { message } = (await client.chatCompletion(ask)).choices[0];
	assert.equal(message.content, ANSWER);
	const again = await client.chatCompletion({ ...ask, messages: [...first, message, more] });
	assert.equal(again.choices[0].message.content, RED);
	yield "chat, second turn";
	let text = "";
	for await (const chunk of client.chatCompletionStream(ask)) text += chunk.choices[0].delta.content;
	assert.equal(text, ANSWER);
	yield "stream";
	const response_format = { type: "json_schema", json_schema: { name: "shape", schema: z.toJSONSchema(Shape) } };
	const shape = await client.chatCompletion({ ...ask, response_format });
	Shape.parse(JSON.parse(shape.choices[0].message.content));
	yield "response_format";
	const called = (await client.chatCompletion({ ...ask, tools: [paint], tool_choice: "required" })).choices[0].message;
	const [call] = called.tool_calls;
	assert.equal(call.function.name, "paint");
	const result = { role: "tool", tool_call_id: call.id, content: "painted" };
	await client.chatCompletion({ ...ask, messages: [...first, called, result], tools: [paint], max_tokens: 5 });
	yield "tool call and its result";
}

async function* anthropic() {
	const client = new Anthropic({ baseURL: url.replace(/\/v1$/, ""), apiKey: "none", maxRetries: 0 });
	const source = { type: "base64", media_type: "image/png", data: picture.toString("base64") };
	const image = { type: "image", source };
	const asked = { role: "user", content: [image, { type: "text", text: COUNT }] };
	const ask = { model: "iota", max_tokens: 100, messages: [asked] };
	const again = async (content, ...more) =>
		(await client.messages.create({ ...ask, messages: [asked, { role: "assistant", content }, ...more] })).content[0].text;
	const message = await client.messages.create(ask);
	assert.equal(message.content[0].text, ANSWER);
	assert.equal(await again(message.content, more), RED);
	yield "create, second turn";
	const streamed = await client.messages.stream(ask).finalMessage();
	assert.equal(streamed.content[0].text, ANSWER);
	assert.equal(await again(streamed.content, more), RED);
	const { input_tokens } = await client.messages.countTokens({ model: "iota", messages: [asked] });
	assert.equal(input_tokens, streamed.usage.input_tokens + streamed.usage.cache_read_input_tokens);
	yield "stream helper, countTokens";
	const paintTool = { name: "paint", input_schema: paint.function.parameters };
	const called = await client.messages.stream({ ...ask, tools: [paintTool], tool_choice: { type: "any" } }).finalMessage();
	const use = called.content.at(-1);
	assert.deepEqual([called.stop_reason, use.name], ["tool_use", "paint"]);
	const result = { type: "tool_result", tool_use_id: use.id, content: [image, { type: "text", text: painter(use.input) }] };
	assert.equal(await again(called.content, { role: "user", content: [result, { type: "text", text: COUNT }] }), ANSWER);
	yield "tools, a result with a picture";
	const form = z.object({ colour: z.enum(["red", "green", "blue"]), number: z.literal([1, 2, 3]) });
	const parsed = await client.messages.parse({ ...ask, output_config: { format: zodOutputFormat(form) } });
	form.parse(parsed.parsed_output);
	yield "parse";
	const run = ({ colour }) => painter({ colour });
	const zodTool = betaZodTool({ name: "paint", description: "Paint.", inputSchema: form.pick({ colour: true }), run });
	const runner = client.beta.messages.toolRunner({ ...ask, tools: [zodTool], max_iterations: 2 });
	assert.equal((await runner.runUntilDone()).role, "assistant");
	yield "toolRunner";
	for await (const model of client.models.list()) assert.equal(model.display_name, "iota");
	yield "models";
}

async function* ai(model) {
	const messages = [
		{
			role: "user",
			content: [
				{ type: "text", text: COUNT },
				{ type: "image", image: picture },
			],
		},
	];
	const whole = await generateText({ model, messages, maxRetries: 0 });
	assert.equal(whole.text, ANSWER);
	const again = await generateText({ model, messages: [...messages, ...whole.response.messages, more], maxRetries: 0 });
	assert.equal(again.text, RED);
	yield "generateText, second turn";
	let text = "";
	for await (const piece of streamText({ model, messages, maxRetries: 0 }).textStream) text += piece;
	assert.equal(text, ANSWER);
	yield "streamText";
	Shape.parse((await generateObject({ model, messages, schema: Shape, maxRetries: 0 })).object);
	yield "generateObject";
	const address = z.object({ to: z.email().optional(), rest: z.record(z.string(), z.string()).optional() });
	const painted = await generateText({
		model,
		messages,
		tools: {
			paint: tool({ inputSchema: Shape.pick({ colour: true }), execute: painter }),
			mail: tool({ inputSchema: address, execute: () => "sent" }),
		},
		toolChoice: { type: "tool", toolName: "paint" },
		stopWhen: stepCountIs(2),
		maxRetries: 0,
	});
	assert.match(painted.steps[0].toolResults[0].output, /^painted /);
	assert.equal(painted.steps.length, 2);
	yield "tool call and its result";
}

const compatible = createOpenAICompatible({
	name: "pocketvlm",
	baseURL: url,
	apiKey: "none",
	includeUsage: true,
	supportsStructuredOutputs: true,
});
const clients = {
	openai: async function* () {
		yield* openai();
		yield* responses();
	},
	"@huggingface/inference": huggingface,
	"@ai-sdk/openai-compatible": () => ai(compatible("iota")),
	"@anthropic-ai/sdk": anthropic,
	"@ai-sdk/anthropic": () => ai(createAnthropic({ baseURL: url, apiKey: "none" })("iota")),
	"@ai-sdk/openai": async function* () {
		const provider = createOpenAI({ baseURL: url, apiKey: "none" });
		yield* ai(provider.chat("iota"));
		for await (const what of ai(provider("iota"))) yield `Responses: ${what}`;
	},
};

for (const name of names.length ? names : Object.keys(clients)) {
	const version = JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;
	const worked = [];
	let state = "ok    ";
	try {
		for await (const what of clients[name]()) worked.push(what);
	} catch (error) {
		console.error(error);
		state = "FAILED";
		process.exitCode = 1;
	}
	console.log(`${state} ${name} ${version} (npm): ${worked.join("; ")}`);
}
