// Sends requests (base64, from stdin as JSON) on one stream of the gateway at argv[2], by grpc-js of the folder argv[3];
// prints the responses and the final status as JSON. A large unary call goes first.
const grpc = require(process.argv[3] + "/node_modules/@grpc/grpc-js");
const { unary, stream } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const raw = (value) => Buffer.from(value, "base64");
const same = (value) => value;
const options = { "grpc.max_receive_message_length": -1, "grpc.keepalive_time_ms": 100 };
const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure(), options);
const service = "/inference.GRPCInferenceService/";

client.makeUnaryRequest(service + "ModelInfer", same, same, raw(unary), (error, answer) => {
  const result = { unary: error ? String(error) : answer.length, responses: [] };
  const call = client.makeBidiStreamRequest(service + "ModelStreamInfer", same, same);
  call.on("data", (message) => result.responses.push(message.toString("base64")));
  call.on("error", () => {});
  call.on("status", (status) => {
    result.code = status.code;
    console.log(JSON.stringify(result));
    client.close();
  });
  for (const request of stream) call.write(raw(request));
  call.end();
});
