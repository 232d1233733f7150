"""Bodies of OpenSearch's and Elasticsearch's requests: their fields, and no others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Action(Shape):  # ConnectorAction.java
    action_type: Literal["predict"]
    method: Literal["POST", "GET"]
    url: str
    headers: dict[str, str]
    request_body: str
    pre_process_function: str | None = None
    post_process_function: str | None = None


class Connector(Shape):  # MLCreateConnectorInput.java
    name: Annotated[str, Field(min_length=1)]
    description: str
    version: str
    protocol: Literal["http", "aws_sigv4"]
    parameters: dict[str, str]
    credential: Annotated[dict[str, str], Field(min_length=1)]
    actions: Annotated[list[Action], Field(min_length=1, max_length=1)]


class Model(Shape):  # "Register model": externally hosted
    name: str
    function_name: Literal["remote"]
    description: str
    connector_id: str


class MlInference(Shape):  # "ML inference search response processor"
    model_id: str
    function_name: Literal["remote"] = "remote"
    input_map: Annotated[list[dict[str, str]], Field(min_length=1, max_length=10)]
    output_map: list[dict[str, str]]
    model_config_: dict[str, str] = Field({}, alias="model_config")
    model_input: str = '{ "parameters": ${ml_inference.parameters} }'
    full_response_path: bool = False
    ignore_missing: bool = False
    ignore_failure: bool = False
    override: bool = False
    one_to_one: bool = False
    max_prediction_tasks: int = 10
    description: str = ""
    tag: str = ""


class ByField(Shape):  # RerankProcessorFactory.java
    target_field: str
    remove_target_field: bool = False
    keep_previous_score: bool = False


class Rerank(Shape):
    by_field: ByField
    ignore_failure: bool = False
    description: str = ""
    tag: str = ""


class Processor(Shape):
    ml_inference: MlInference | None = None
    rerank: Rerank | None = None


class Pipeline(Shape):
    description: str = ""
    response_processors: list[Processor]


class QueryContext(Shape):
    query_context: dict[str, Any]


class Ext(Shape):
    rerank: QueryContext


class Search(Shape):
    query: dict[str, Any]
    size: int = 10
    source: dict[str, list[str]] = Field({}, alias="_source")
    ext: Ext | None = None


class InferenceSettings(Shape):  # CustomServiceSettings of inference.put_custom
    url: str
    secret_parameters: dict[str, str]
    headers: dict[str, str]
    request: str
    response: dict[Literal["json_parser"], dict[str, str]]


class Inference(Shape):
    service: Literal["custom"]
    service_settings: InferenceSettings


class TextSimilarityReranker(Shape):
    retriever: dict[str, Any]
    field: str
    inference_id: str
    inference_text: str
    rank_window_size: int = 10
