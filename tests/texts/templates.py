"""A template with the turns, the thought channel and the tools of Gemma 4's, in a few lines of our own."""

GEMMA_LIKE = """\
{{- bos_token -}}
{%- if enable_thinking or tools or messages[0].role == 'system' -%}
    {{- '<|turn>system\\n' -}}
    {%- if enable_thinking -%}{{- '<|think|>\\n' -}}{%- endif -%}
    {%- if messages[0].role == 'system' -%}{{- messages[0].content | trim -}}{%- endif -%}
    {%- for tool in tools or [] -%}
        {{- '<|tool>declaration:' + tool.function.name + '<tool|>' -}}
    {%- endfor -%}
    {{- '<turn|>\\n' -}}
{%- endif -%}
{%- set state = namespace(open=false) -%}
{%- for message in messages if message.role != 'system' -%}
    {%- if message.role == 'tool' -%}
        {{- '<|tool_response>response:' + message.name + '{value:<|"|>' + message.content + '<|"|>}' -}}
        {{- '<tool_response|>' -}}
    {%- else -%}
        {%- if not (state.open and message.role == 'assistant') -%}
            {{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' -}}
        {%- endif -%}
        {%- set state.open = message.tool_calls is defined -%}
        {%- if message.content is string -%}
            {{- message.content | trim -}}
        {%- else -%}
            {%- for part in message.content or [] -%}{{- part.text | trim -}}{%- endfor -%}
        {%- endif -%}
        {%- for call in message.tool_calls or [] -%}
            {{- '<|tool_call>call:' + call.function.name + '{' -}}
            {%- for key, value in call.function.arguments | dictsort -%}
                {{- key + ':' + ('<|"|>' + value + '<|"|>' if value is string else value | tojson) -}}
                {{- '' if loop.last else ',' -}}
            {%- endfor -%}
            {{- '}<tool_call|>' -}}
        {%- endfor -%}
        {{- '' if state.open else '<turn|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '' if state.open else '<|turn>model\\n' -}}
    {{- '' if enable_thinking or state.open else '<|channel>thought\\n<channel|>' -}}
{%- endif -%}
"""

REFUSING = "{{ raise_exception('roles must alternate') if messages | length > 2 }}{{ messages[-1].content }}"

HOSTILE = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
